"Encoders: the contract that each keeps, joined by adding its name; and the words for those that break it."
import pytest
import torch
from torch import nn

from deepmrs.core import InputError
from deepmrs.decoder import Block, Layout
from deepmrs.encoders import ENCODERS, ConvNet, MLP, Mixer, ParameterHead, check_encoder, draw_encoder, encoder_size, layers, make_encoder

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


GFLOP = {'convnet': .00257, 'mlp': .00245, 'mixer': .672, 'convnext': 2.68}

@pytest.mark.parametrize('name', ENCODERS)
def test_arithmetic(name):
    weights, gflop = encoder_size(make_encoder(name, 1024, 23), 1024)
    assert weights == FULL[name] and gflop == pytest.approx(GFLOP[name], rel=.01)


def test_arithmetic_by_hand():
    assert encoder_size(MLP(64, 5, widths=(32,)), 64)[1]*1e9 == 2*(128*32 + 32*5)
    assert encoder_size(ConvNet(11, 3, channels=(4,), kernels=(5,)), 11)[1]*1e9 == 2*(2*5*4*4 + 16*3)


@pytest.mark.parametrize('name', ENCODERS)
def test_drawing_shows_every_layer_with_weights(name):
    import matplotlib.pyplot as plt
    net = make_encoder(name, 256, 7, **(SMALL[name] | ({'channels': [8, 16]} if name == 'convnet' else {})))
    before = {k: v.clone() for k, v in net.state_dict().items()}
    rows = layers(net, (2, 256))
    assert rows[-1]['text'].endswith('» 7') and rows[-1]['shape'] == '7' and net.training
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items()) and not any(m._forward_hooks for m in net.modules())
    ax = draw_encoder(net, (2, 256))
    texts = [t.get_text() for t in ax.texts]
    assert all(r['text'] in texts for r in rows) and f'{sum(p.numel() for p in net.parameters()):,} weights' in ax.get_title(loc='left')
    plt.close(ax.figure)


def test_drawing_follows_the_network():
    "Repeated blocks are counted, arcs stand where the input is added, a shared layer appears where it is used"
    rows = layers(Mixer(64, 3, dim=16, depth=5), (2, 64))
    assert [r['text'] for r in rows if r['kind'] == 'block'] == ['5 × MixerBlock'] and rows[1]['adds']
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.act = nn.Linear(128, 128), nn.GELU()
        def forward(self, x): return self.act(self.a(self.act(x)))
    net = nn.Sequential(nn.Flatten(), Plain(), nn.Linear(128, 2))
    assert [r['text'] for r in layers(net, (2, 64))] == ['Flatten', 'Plain', 'Linear, 128 » 2'] and not layers(net, (2, 64))[1]['adds']
    assert [r['text'] for r in layers(Plain(), (128,))] == ['GELU', 'Linear, 128 » 128', 'GELU']


def test_paper_mlp_has_sixteen_free_outputs():
    def rank(net):
        with torch.no_grad(): y = net(torch.randn(100, 2, 1024, generator=torch.Generator().manual_seed(1))).double()
        return int(torch.linalg.matrix_rank(y - y.mean(0), rtol=1e-5))
    assert rank(MLP(1024, 23)) == 16 and rank(MLP(1024, 23, widths=(512, 64))) == 23


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
