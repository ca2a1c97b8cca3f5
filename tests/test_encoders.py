"Encoders: the contract that each keeps, joined by adding its name; and the words for those that break it."
import pytest
import torch
from torch import nn

from deepmrs.core import InputError
from deepmrs.decoder import Block, Layout
from deepmrs.encoders import ENCODERS, ConvNet, MLP, ParameterHead, check_encoder, make_encoder

SMALL = {'convnet': {}, 'mlp': {}, 'mixer': {'dim': 32, 'depth': 2}, 'convnext': {'dims': [8, 16, 24, 32], 'depths': [1, 1, 2, 1]}}
FULL = {'convnet': 49_543, 'mlp': 1_224_567, 'mixer': 4_492_311, 'convnext': 26_781_623}


def test_all_encoders_are_listed(): assert set(SMALL) == set(ENCODERS) == set(FULL)


@pytest.mark.parametrize('name', ENCODERS)
@pytest.mark.parametrize('points, outputs', [(1024, 23), (2048, 3)])
def test_shapes_and_gradients(name, points, outputs):
    net = make_encoder(name, points, outputs, **SMALL[name])
    x = torch.randn(5, 2, points)
    y = net(x)
    assert y.shape == (5, outputs) and y.dtype == torch.float32
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert torch.allclose(net(x[2:3]), y[2:3], atol=1e-4)


@pytest.mark.parametrize('name', ENCODERS)
def test_size(name): assert sum(p.numel() for p in make_encoder(name, 1024, 23).parameters()) == FULL[name]


@pytest.mark.parametrize('name', ENCODERS)
def test_learns_a_frequency(name):
    "Each can learn to read the frequency of a line"
    torch.manual_seed(0)
    net, t = make_encoder(name, 256, 1, **(SMALL[name] | ({'channels': [8, 16, 24]} if name == 'convnet' else {}))), torch.arange(256)
    opt = torch.optim.Adam(net.parameters(), 3e-3)
    def batch(n):
        f = torch.rand(n, 1)*2 - 1
        z = torch.exp(1j*f*t*0.05 - t*0.02)
        return torch.stack([z.real, z.imag], 1), f
    for _ in range(120):
        x, f = batch(64)
        loss = (net(x) - f).square().mean()
        opt.zero_grad(); loss.backward(); opt.step()
    x, f = batch(256)
    net.eval()
    assert (net(x) - f).square().mean() < 0.1*f.var()


def test_batch_norm():
    net = make_encoder('convnet', 1024, 4, batch_norm=True)
    assert any(isinstance(m, nn.BatchNorm1d) for m in net.modules()) and net.training


class Base(nn.Module):
    def __init__(self, points=64, outputs=4):
        super().__init__()
        self.lin = nn.Linear(2*points, outputs)
    def forward(self, x): return self.lin(x.flatten(1))

class Transposed(Base):
    def forward(self, x): return super().forward(x).T
class Listed(Base):
    def forward(self, x): return [super(Listed, self).forward(x)]
class Mixing(Base):
    def forward(self, x): return super().forward(x - x.mean(0, keepdim=True))
class Detached(Base):
    def forward(self, x): return super().forward(x).detach()
class Nan(Base):
    def forward(self, x): return super().forward(x)/0
class Idle(Base):
    def __init__(self):
        super().__init__()
        self.spare = nn.Linear(2, 2)
class Weightless(nn.Module):
    def forward(self, x): return x[:, 0, :4]
class Crashing(Base):
    def forward(self, x): return self.lin(x)
class Complex(Base):
    def forward(self, x): return super().forward(x) + 0j
class Narrow(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(128, 3)
    def forward(self, x): return self.lin(x.flatten(1))


@pytest.mark.parametrize('cls, word', [(Transposed, 'shape'), (Listed, 'list'), (Mixing, 'on its own'), (Detached, 'gradient'), (Nan, 'NaN'), (Idle, 'spare'), (Weightless, 'no weights'),
                                       (Crashing, 'failed on an input'), (Complex, 'real'), (Narrow, r'must be \(3, 4\)')])
def test_check_encoder_says_what_is_wrong(cls, word):
    with pytest.raises(InputError, match=word) as e: check_encoder(cls(), 64, 4)
    assert cls.__name__ in str(e.value)


def test_check_encoder_leaves_a_good_one_alone():
    net = Base()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    assert check_encoder(net, 64, 4) is net and net.training
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in before.items()) and net.lin.weight.grad is None


@pytest.mark.parametrize('make, word', [(lambda: make_encoder('convnext_tiny', 1024, 2), 'did you mean convnext'), (lambda: make_encoder('zzz', 1024, 2), 'choose one of'),
                                        (lambda: make_encoder('mlp', 64, 2, depth=3), 'no option depth'), (lambda: make_encoder(3, 64, 2), 'not 3'),
                                        (lambda: make_encoder('convnet', 64, 2), 'too few'), (lambda: make_encoder('mixer', 1000, 2), 'whole number of patches'),
                                        (lambda: make_encoder('convnext', 16, 2), 'too few'), (lambda: make_encoder('mlp', 64, 2, widths='a'), 'could not be made'),
                                        (lambda: make_encoder(Base(), 64, 4, width=3), 'takes no options')])
def test_make_encoder_refuses_in_words(make, word):
    with pytest.raises(InputError, match=word): make()


def test_classes_and_instances():
    assert isinstance(make_encoder(Base, 32, 2), Base)
    net = MLP(32, 2, widths=(4,))
    assert make_encoder(net, 32, 2) is net
    assert make_encoder('convnet', 64, 2, channels=[4, 8]).out.out_features == 2
    assert ConvNet(1024, 23, kernels=(5, 5, 3)).layers[2].kernel_size == (5,)


def test_head():
    lay = Layout([Block('amplitudes', ('a', 'b'), '', 0.), Block('own', ('c',), '', .5, 9.), Block('shift', ('s',), 'Hz', -30, 30), Block('fixed', ('d',), '', 0., 5.)])
    mean, sd = torch.tensor([100., .01, 3., -2., 4.]), torch.tensor([1., 1., 2., 3., 0.])
    head = ParameterHead(lay, mean, sd)
    zero = head(torch.zeros(1, 5))[0]
    assert torch.allclose(zero[[0, 2, 3, 4]], mean[[0, 2, 3, 4]], rtol=1e-4) and 0 <= zero[1] < 0.4
    wild = head(torch.randn(1000, 5)*20)
    assert wild.isfinite().all() and (wild[:, :2] >= 0).all() and (wild[:, 2] >= .5).all() and (wild[:, 4] == 4).all()
