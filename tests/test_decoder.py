"One contract for every decoder: each combination of modulations, macromolecules and baseline joins by its name."
import itertools
import math

import pytest
import torch

from deepmrs.baseline import SplineBaseline, window_points
from deepmrs.basis import Basis
from deepmrs.core import Acquisition, InputError, fid_to_spectrum, spectrum_to_fid
from deepmrs.decoder import (BackShift, Block, Decoder, FirstOrderPhase, Gaussian, GramTable, Layout, Lineshape, Lorentzian, Modulation, Phase, Shift, Signals, check_modulation, jacobian,
                             normal_equations, reduced)
from deepmrs.model import Preset, make_decoder

ACQ = Acquisition(5e-4, 123.2, 512)
LINES = {'NAA': [(2.008, 3)], 'Cr': [(3.027, 3), (3.913, 2)], 'GPC': [(3.212, 9)]}
DEVICES = ['cpu'] + (['cuda'] if torch.cuda.is_available() else [])


def singlets(acq=ACQ, damping=4.):
    t = acq.time_axis(dtype=torch.float64)
    return Basis(torch.stack([sum(h*torch.exp((2j*math.pi*acq.to_hz(p) - damping)*t) for p, h in ls) for ls in LINES.values()]), list(LINES), acquisition=acq)


class Fading(Modulation):
    "A term of one's own, with the derivative left to automatic differentiation"
    name, unit = 'fading', '1/s'
    def exponent(self, theta, axis): return torch.complex(-torch.log1p((theta*axis)**2), torch.zeros_like(theta*axis))


MODULATIONS = {
    'nothing': lambda: [], 'phase': lambda: [Phase()], 'bare': lambda: [Shift(-30, 30), Lorentzian(0, 100, 5.), Phase()], 'other order': lambda: [Phase(), Lorentzian(0, 100, 5.), Shift(-30, 30)],
    'voigt': lambda: [Shift(-30, 30), Lorentzian(0, 100, 5.), Gaussian(0, 100, 5.), Phase()],
    'brain': lambda: [Shift(-30, 30), Lorentzian(0, 100, 5.), Gaussian(0, 100, 5.), Phase(), FirstOrderPhase(-1e-3, 1e-3)],
    'own shifts': lambda: [Shift(-30, 30), Lorentzian(0, 100, 5.), Phase(), Shift(-5, 5, targets=['NAA', 'GPC'])],
    'own widths': lambda: [Shift(-30, 30), Lorentzian(0, 100, 5.), FirstOrderPhase(-1e-3, 1e-3), Lorentzian(0, 20, targets=['Cr']), Gaussian(0, 20, targets=['Cr', 'NAA'])],
    'borrowed': lambda: [Shift(-30, 30), Phase(), BackShift(targets=['Cr'], borrows='shift')],
    'group': lambda: [Shift(-30, 30), Phase(), Shift(-5, 5, targets={'both': ('NAA', 'GPC'), 'Cr': ('Cr',)}), Lorentzian(-3, 9, targets={'both': ('NAA', 'GPC')})],
    'skewed': lambda: [Shift(-30, 30), Lorentzian(0, 100, 5.), Lineshape(), Phase()],
    'free shape': lambda: [Shift(-30, 30), Lorentzian(0, 100, 5.), Lineshape('free'), FirstOrderPhase(-1e-3, 1e-3), Shift(-5, 5, targets=['Cr'])],
    'of one\'s own': lambda: [Shift(-30, 30), Fading(), Phase()]}
MACROMOLECULES = ['none', 'classical', 'summed', 'parametrised', 'measured', {'kind': 'summed', 'shape': 'gaussian', 'shift': 'paper'},
                  {'kind': 'parametrised', 'shift': 'free', 'width': 'free'}, {'kind': 'regularised', 'paper_axis': True}]
BASELINES = ['off', 'stiff', 'moderate', 'flexible', 5.]


def from_preset(mm, baseline, modulations=('shift', 'lorentzian', 'gaussian', 'phase', 'first_order_phase')):
    measured = torch.exp((2j*math.pi*ACQ.to_hz(2.03) - 80)*ACQ.time_axis()) if mm == 'measured' else None
    return make_decoder(singlets(), ACQ, Preset('test', '1', mm, baseline, modulations), measured=measured)[0]


DECODERS = {k: (lambda m=m: Decoder(singlets(), ACQ, m())) for k, m in MODULATIONS.items()}
DECODERS |= {f'{k}, baseline': (lambda m=m: Decoder(singlets(), ACQ, m(), SplineBaseline(ACQ))) for k, m in MODULATIONS.items()}
DECODERS |= {f'{mm}, {b}': (lambda mm=mm, b=b: from_preset(mm, b)) for mm, b in itertools.product(MACROMOLECULES, BASELINES)}
DECODERS |= {f'{mm}, time domain': (lambda mm=mm: from_preset(mm, 'off', ('shift', 'lorentzian', 'phase'))) for mm in MACROMOLECULES}
every = pytest.mark.parametrize('kind', DECODERS)


def some_params(decoder, n=2, seed=0, dtype=torch.float64):
    "Parameters [n, P] inside their bounds, none of them at zero"
    g = torch.Generator().manual_seed(seed)
    scale = {'amplitudes': 5., 'macromolecules': 3., 'shift': 4., 'lorentzian': 10., 'gaussian': 8., 'phase': 1., 'first_order_phase': 2e-4, 'baseline': 50., 'fading': 9.,
             'own_shift': 2., 'own_lorentzian': 5., 'own_gaussian': 5., 'line_shift': 1., 'line_lorentzian': 5., 'lineshape': .8}
    cols = [(.3 + torch.rand(n, len(b.labels), generator=g, dtype=torch.float64))*scale[k] for k, b in decoder.layout.blocks.items()]
    return torch.cat(cols, -1).to(dtype)


def close(a, b, rel): assert float((a - b).abs().max()) <= rel*float(b.abs().max()) + 1e-30, float((a - b).abs().max()/b.abs().max())


@every
def test_terms_sum_to_the_spectrum(kind):
    d = DECODERS[kind]()
    p = some_params(d)
    parts = d.terms(p)
    close(sum(parts.values()), d.spectrum(p), 1e-12)
    assert list(parts) == list(d.names) + (['baseline'] if d.baseline is not None else [])


@every
def test_fid_and_spectrum_are_one(kind):
    d = DECODERS[kind]()
    p = some_params(d)
    assert d(p).shape == (2, ACQ.points) and d(p).dtype == torch.complex128
    close(fid_to_spectrum(d(p)), d.spectrum(p), 1e-12)
    close(spectrum_to_fid(d.spectrum(p)), d(p), 1e-12)


@every
def test_jacobian_is_the_derivative(kind):
    d = DECODERS[kind]()
    p, keep = some_params(d), slice(200, 280)
    model, J = jacobian(d, p, keep)
    close(model, d.spectrum(p)[:, keep], 1e-12)
    auto = torch.stack([torch.func.jacfwd(lambda v: torch.view_as_real(d.spectrum(v[None])[0, keep]))(x) for x in p])
    auto = torch.view_as_complex(auto.movedim(-1, 1).contiguous())
    assert J.shape == (2, d.layout.size, 80)
    assert ((J - auto).abs().amax(-1) <= 1e-9*auto.abs().amax(-1) + 1e-30).all()
    if d.plain:
        model, J = jacobian(d, p)
        auto = torch.view_as_complex(torch.stack([torch.func.jacfwd(lambda v: torch.view_as_real(d(v[None])[0]))(x) for x in p]).movedim(-1, 1).contiguous())
        close(model, d(p), 1e-12)
        assert ((J - auto).abs().amax(-1) <= 1e-9*auto.abs().amax(-1) + 1e-30).all()
    else:
        with pytest.raises(InputError, match='keep'): jacobian(d, p)


@every
def test_gradients_flow_to_every_parameter(kind):
    d = DECODERS[kind]()
    p = some_params(d, dtype=torch.float32).requires_grad_()
    torch.view_as_real(d(p)).square().sum().backward()
    assert torch.isfinite(p.grad).all() and (p.grad != 0).all(0).all()


@every
def test_single_precision_batches_and_linearity(kind):
    d = DECODERS[kind]()
    p = some_params(d, 5)
    close(d(p.float()).to(torch.complex128), d(p), 3e-6)
    close(torch.cat([d(x[None]) for x in p]), d(p), 1e-12)  # a batch is its spectra
    q = p.clone()
    linear = slice(0, d.linear)
    q[:, linear] *= 3
    if d.baseline is not None: q[:, d.layout.slices['baseline']] *= 3
    close(d(q), 3*d(p), 1e-12)


@every
@pytest.mark.parametrize('device', DEVICES)
def test_normal_equations_on_each_device(kind, device):
    d = DECODERS[kind]().to(device)
    p = some_params(d).to(device)
    keep = slice(200, 280)
    y = d.spectrum(p)[:, keep] + 1.
    c, g, H = normal_equations(d, p, y, keep)
    J = jacobian(d, p, keep)[1]
    assert math.isclose(float(c[0]), 80/2, rel_tol=1e-9)  # half the sum of 1²
    close(g, -(J.real).sum(-1), 1e-9)
    close(H, (J.conj() @ J.mT).real, 1e-9)


@pytest.mark.parametrize('order', list(itertools.permutations(range(3))))
def test_the_table_agrees_with_the_general_path(order):
    mods = [Shift(-30, 30), Lorentzian(0, 100, 5.), Phase()]
    d = Decoder(singlets(), ACQ, [mods[i] for i in order])
    assert GramTable.fits(d)
    p = some_params(d, 50)
    p[:, d.layout.slices['lorentzian']] = torch.linspace(0, 100, 50, dtype=torch.float64)[:, None]
    y = d(some_params(d, 50, 1).float())
    fast, slow = normal_equations(d, p, y, table=GramTable(d)), normal_equations(d, p, y.to(torch.complex128))
    assert ((fast[0] - slow[0]).abs() < 1e-5*(y.abs()**2).sum(-1)).all()
    for a, b in zip(fast[1:], slow[1:]):
        s = slow[2].diagonal(dim1=-2, dim2=-1).sqrt()  # each parameter in its own scale
        unit = s*(y.abs()**2).sum(-1).sqrt()[:, None] if a.ndim == 2 else s[:, :, None]*s[:, None]
        assert float(((a - b)/unit).abs().max()) < 2e-5


def test_only_the_bare_model_has_a_table():
    for kind, make in DECODERS.items():
        d = make()
        bare = d.plain and sorted(type(m).__name__ for m in d.modulations) == ['Lorentzian', 'Phase', 'Shift']
        assert GramTable.fits(d) == bare, kind


# ---- the small copy for a window

WIDE = Acquisition(2.5e-4, 123.2, 2048)


@pytest.mark.parametrize('acq', [WIDE, WIDE.replace(points=1024), WIDE.replace(dwell_time=2e-4, points=4096), WIDE.replace(centre_ppm=4.7), WIDE.replace(spectrometer_frequency=297.2, dwell_time=1.25e-4)],
                         ids=['usual', 'short', 'long', 'centre', '7 T'])
@pytest.mark.parametrize('baseline', ['off', 'moderate'])
@pytest.mark.parametrize('mm', ['none', 'classical', {'kind': 'parametrised', 'shift': 'free'}], ids=str)
def test_reduced_is_close(acq, baseline, mm):
    d = make_decoder(singlets(acq), acq, Preset('test', '1', mm, baseline, ('shift', 'lorentzian', 'gaussian', 'phase', 'first_order_phase'), (.2, 4.2)))[0]
    keep = window_points(acq)
    small, inside = reduced(d, keep)
    assert small.layout.labels == d.layout.labels and small.acquisition.points < .6*acq.points and inside.stop - inside.start == keep.stop - keep.start
    p = some_params(d, 6, dtype=torch.float32)
    a, b = small.spectrum(p)[:, inside], d.spectrum(p)[:, keep]
    rings = acq.points*acq.dwell_time < .4  # the FIDs are cut off while they ring, and fading them out costs some
    assert float(((a - b).abs().amax(-1)/b.abs().amax(-1)).max()) < (.04 if rings else 2e-3)
    Ja, Jb = jacobian(small, p, inside)[1], jacobian(d, p, keep)[1]
    assert float(((Ja - Jb).norm(dim=-1)/Jb.norm(dim=-1)).max()) < (.5 if rings else .05)


def test_nothing_is_reduced_when_nothing_is_gained():
    d = Decoder(singlets(), ACQ)
    assert reduced(d, slice(0, ACQ.points)) is None and reduced(d, slice(0, 5)) is None  # the whole spectrum; a window at its edge


# ---- what is refused, and small parts

def test_broken_models_are_refused():
    b = singlets()
    for make, word in ((lambda: Decoder(b, ACQ.replace(points=500)), '512 points'), (lambda: Decoder(b, ACQ, [Shift(targets=['Xyz'])]), 'Xyz'),
                       (lambda: Decoder(b, ACQ, [Shift(), Shift()]), 'share a name'), (lambda: Decoder(b, ACQ, [BackShift(targets=['NAA'], borrows='shift')]), 'borrows'),
                       (lambda: Decoder([Signals(b.fids, b.names), Signals(b.fids, b.names)], ACQ), 'share a name'), (lambda: SplineBaseline(ACQ, 'soft'), 'soft'),
                       (lambda: SplineBaseline(ACQ, 0), 'off'), (lambda: SplineBaseline(ACQ, math.nan), 'off'), (lambda: SplineBaseline(ACQ, 1e6), 'off'),
                       (lambda: SplineBaseline(ACQ.replace(points=2)), 'points')):
        with pytest.raises(InputError, match=word): make()


def test_layout():
    lay = Layout([Block('a', ('x', 'y'), '', 0.), Block('b', ('z',), 'Hz', -1, 1, .5)])
    p = lay.join({'a': torch.tensor([[1., 2.], [3., 4.]])})
    assert p.tolist() == [[1, 2, .5], [3, 4, .5]] and lay.split(p)['b'].tolist() == [[.5], [.5]] and lay.lower().tolist() == [0, 0, -1] and len(lay) == 3 and 'b' in lay
    with pytest.raises(InputError, match='c'): lay.join({'c': 1.})


def test_a_wrong_derivative_is_found():
    class Wrong(Gaussian):
        def derivative(self, theta, axis): return 1.001*super().derivative(theta, axis)
    class Real(Modulation):
        def exponent(self, theta, axis): return -theta*axis
    for m, word in ((Wrong(), 'differs'), (Real(), 'complex')):
        with pytest.raises(InputError, match=word): check_modulation(m, ACQ)
    for m in MODULATIONS['brain']() + [Fading()]: check_modulation(m, ACQ)
