"The fit against scipy, box_qp on odd problems, and what must not change the answer: scale, order, batch, precision."
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import least_squares, lsq_linear

from deepmrs import fitting
from deepmrs.basis import Basis
from deepmrs.core import Acquisition, InputError
from deepmrs.decoder import Decoder, FirstOrderPhase, Gaussian, GramTable, Lorentzian, Phase, Shift, jacobian
from deepmrs.fitting import Problem, box_qp, covariance, crlb, fit, gauss_newton
from deepmrs.model import Preset, make_decoder

ACQ = Acquisition(2.5e-4, 123.2, 1024)
LINES = {'NAA': [(2.008, 3)], 'Cr': [(3.027, 3), (3.913, 2)], 'GPC': [(3.212, 9)], 'Glu': [(2.35, 2), (2.1, 1), (2.04, 1), (3.75, 1)]}
DEVICES = ['cpu'] + (['cuda'] if torch.cuda.is_available() else [])
few = settings(max_examples=150, deadline=None)


def singlets(acq=ACQ, damping=3., lines=LINES):
    t = acq.time_axis(dtype=torch.float64)
    return Basis(torch.stack([sum(h*torch.exp((2j*math.pi*acq.to_hz(p) - damping)*t) for p, h in ls) for ls in lines.values()]), list(lines), acquisition=acq)


def bare_data(n, sd=3., seed=0, basis=None):
    "(decoder, truth [n, P], FIDs [n, N]) of the bare model; a third of the spectra hold no Glu"
    g = torch.Generator().manual_seed(seed)
    d = Decoder(basis or singlets(), ACQ)
    rand = lambda k: torch.rand(n, k, generator=g)
    x = d.layout.join({'amplitudes': rand(4)*8 + .5, 'shift': rand(1)*20 - 10, 'lorentzian': rand(1)*15, 'phase': rand(1)*4 - 2})
    x[::3, 3] = 0
    return d, x, d(x) + sd*torch.randn(n, ACQ.points, dtype=torch.complex64, generator=g)*math.sqrt(2)


# ---- the bounded quadratic problem

def qp_optimal(H, g, low, high, x, tol):
    "Karush, Kuhn and Tucker: inside the bounds, no slope where free, slope outward where bound; slopes in the scale of each parameter"
    s = np.sqrt(np.maximum(np.diag(H), 1e-300))
    slope = (H @ x + g)/s
    assert (x >= low - 1e-9*(1 + abs(low))).all() and (x <= high + 1e-9*(1 + abs(high))).all()
    size = np.abs(g/s).max() + np.abs(np.outer(1/s, np.ones(len(s)))*H*x).max() + 1e-30
    free = (x > low + 1e-9/s) & (x < high - 1e-9/s)
    assert np.abs(slope[free]).max(initial=0) < tol*size
    assert (slope[~free & (x < high - 1e-9/s)] > -tol*size).all()  # at the lower bound only
    assert (slope[~free & (x > low + 1e-9/s)] < tol*size).all()


@few
@given(p=st.integers(1, 14), rows=st.integers(1, 30), seed=st.integers(0, 10**6), degenerate=st.sampled_from(['none', 'twin', 'nearly', 'zero', 'tiny', 'wide']),
       bounds=st.sampled_from(['nonnegative', 'box', 'none', 'shut', 'mixed']))
def test_box_qp_solves_every_problem(p, rows, seed, degenerate, bounds):
    r = np.random.default_rng(seed)
    A, b = r.normal(size=(rows, p)), r.normal(size=rows)
    if p > 1:
        if degenerate == 'twin': A[:, 1] = A[:, 0]
        if degenerate == 'nearly': A[:, 1] = A[:, 0] + 1e-4*A[:, 1]
        if degenerate == 'zero': A[:, 1] = 0
        if degenerate == 'tiny': A[:, 1] *= 1e-9
        if degenerate == 'wide': A *= 10.**r.uniform(-6, 6, size=p)
    scale = 1/np.maximum(np.linalg.norm(A, axis=0), 1e-12)
    low = {'nonnegative': np.zeros(p), 'box': -r.uniform(0, 1, p)*scale, 'none': np.full(p, -np.inf), 'shut': np.zeros(p), 'mixed': np.where(r.random(p) < .5, 0, -np.inf)}[bounds]
    high = {'nonnegative': np.full(p, np.inf), 'box': r.uniform(0, 1, p)*scale, 'none': np.full(p, np.inf), 'shut': np.zeros(p), 'mixed': np.where(r.random(p) < .3, 0, np.inf)}[bounds]
    H, g = A.T @ A, -A.T @ b
    x = box_qp(*(torch.from_numpy(v)[None] for v in (H, g, low, high)))[0].numpy()
    assert np.isfinite(x).all()
    qp_optimal(H, g, low, high, x, 1e-6)
    if degenerate == 'none' and rows > 2*p and bounds in ('nonnegative', 'box'):
        assert np.allclose(x, lsq_linear(A, b, (low - 1e-12*(bounds == 'box'), high), tol=1e-13).x, atol=1e-6)


def test_box_qp_in_a_batch_is_box_qp_alone():
    g = torch.Generator().manual_seed(0)
    A = torch.randn(60, 20, 15, generator=g, dtype=torch.float64)
    b = torch.randn(60, 20, generator=g, dtype=torch.float64)
    H, grad, low, high = A.mT @ A, -(A.mT @ b[..., None])[..., 0], torch.zeros(60, 15, dtype=torch.float64), torch.full((60, 15), math.inf, dtype=torch.float64)
    whole = box_qp(H, grad, low, high)
    assert torch.allclose(whole, torch.cat([box_qp(H[i:i+1], grad[i:i+1], low[i:i+1], high[i:i+1]) for i in range(60)]), atol=1e-10)


# ---- against scipy

def oracle(d, y, x0):
    y = torch.view_as_real(y.to(torch.complex128)).flatten()
    model = lambda v: (torch.view_as_real(d(torch.from_numpy(v)[None])[0]).flatten() - y).numpy()
    jac = lambda v: torch.view_as_real(jacobian(d, torch.from_numpy(v)[None])[1][0]).flatten(1).T.numpy()
    lo, hi = d.layout.lower().double().numpy(), d.layout.upper().double().numpy()
    return least_squares(model, np.clip(x0, lo + 1e-9, hi - 1e-9), jac, (lo, hi), xtol=1e-14, ftol=1e-14, gtol=1e-14, x_scale='jac')


def test_the_bare_fit_is_scipys():
    d, truth, y = bare_data(100)
    f = fit(d, y)
    assert f.converged.all()
    for i in range(100):
        want = oracle(d, y[i], truth[i].double().numpy())
        away = (f.params[i].numpy() - want.x)/f.sd[i].numpy()
        assert np.abs(away).max() < .03, (i, away)
        assert float(f.cost[i]) < want.cost*(1 + 1e-4)


def test_errors_are_those_of_many_draws():
    "Spread of the estimates, and of their mean from the truth, against the reported error bars"
    d, truth, _ = bare_data(1)
    x = d.layout.join({'amplitudes': torch.tensor([[8., 6., 1.5, 7.]]), 'shift': 3., 'lorentzian': 6., 'phase': .4})
    g = torch.Generator().manual_seed(1)
    f = fit(d, d(x) + 3*math.sqrt(2)*torch.randn(1500, ACQ.points, dtype=torch.complex64, generator=g))
    z = (f.params - x.double())/f.sd
    assert (z.std(0) - 1).abs().max() < .08 and (z.mean(0).abs() < 4/math.sqrt(1500)).all()
    assert abs(f.noise.mean() - 3) < .02
    bound = crlb(d, x, 3.)[0]
    assert torch.allclose(f.covariance.mean(0), bound, rtol=.05, atol=.05*float(bound.diagonal().min()))
    empirical = torch.from_numpy(np.cov(f.params.numpy().T))
    s = bound.diagonal().sqrt()
    assert ((empirical - bound)/(s[:, None]*s)).abs().max() < .12


# ---- one answer, whichever way

def test_fast_path_agrees_with_general_path(monkeypatch):
    d, truth, y = bare_data(40)
    fast = fit(d, y)
    monkeypatch.setattr(GramTable, 'fits', staticmethod(lambda d: False))
    slow = fit(d, y)
    assert ((fast.params - slow.params)/fast.sd).abs().max() < .02
    assert torch.allclose(fast.sd, slow.sd, rtol=1e-3)


def same(a, b, within=.01): assert ((a.params - b.params).abs()/a.sd.clamp_min(1e-30)).max() < within and torch.allclose(a.sd, b.sd, rtol=1e-2)


def brain(n=6, seed=0):
    d, _, _ = make_decoder(singlets(ACQ.replace(points=2048)))
    g = torch.Generator().manual_seed(seed)
    x = d.layout.join({'amplitudes': 2 + 6*torch.rand(n, 4, generator=g), 'macromolecules': torch.tensor([3., 1, 2, 1.2, 4.5, .1, .3, .2, .1, .3] + [1.5]*9), 'shift': 2., 'lorentzian': 6.,
                       'gaussian': 8., 'phase': .3, 'baseline': 200*torch.sin(torch.linspace(0, 7, len(d.layout.blocks['baseline'].labels)))[None]})
    return d, x, d(x) + 2*torch.randn(n, 2048, dtype=torch.complex64, generator=g)


@pytest.mark.parametrize('make', [lambda: bare_data(30), brain], ids=['bare', 'brain'])
def test_batch_order_and_scale_do_not_matter(make):
    d, _, y = make()
    whole = fit(d, y)
    for i in (0, len(y) - 1): same(whole.each(lambda v: v[i:i+1]), fit(d, y[i:i+1]))
    turned = fit(d, y.flip(0))
    same(whole, turned.each(lambda v: v.flip(0)))
    lay = d.layout
    linear = torch.zeros(lay.size, dtype=torch.bool)
    linear[:d.linear] = True
    if 'baseline' in lay: linear[lay.slices['baseline']] = True
    for s in (1e-9, 1e9, 1e-15):
        f = fit(d, y*s)
        unit = torch.where(linear, s, 1.)
        f.params, f.covariance = f.params/unit, f.covariance/(unit[:, None]*unit)
        same(whole, f)
        assert torch.allclose(f.noise/s, whole.noise, rtol=1e-3) and torch.allclose(f.cost/s**2, whole.cost, rtol=1e-3)


@pytest.mark.parametrize('preset', ['none', 'brain-3t'])
def test_scale_of_the_basis_does_not_matter(preset):
    b = singlets(ACQ.replace(points=2048))
    d, _, _ = make_decoder(b, preset=preset)
    _, x, y = brain(3)
    one = fit(d, y)
    big, _, _ = make_decoder(b.replace(1e6*b.fids), preset=preset)
    f = fit(big, y)
    K = d.linear
    assert ((f.params[:, :4]*1e6 - one.params[:, :4])/one.sd[:, :4]).abs().max() < .02
    assert torch.allclose(f.sd[:, :4]*1e6, one.sd[:, :4], rtol=.02) and K == big.linear


def test_order_of_the_metabolites_does_not_matter():
    d, _, y = bare_data(20)
    b = singlets()
    back = fit(Decoder(b.select(list(reversed(b.names))), ACQ), y)
    one = fit(d, y)
    assert ((back.params[:, :4].flip(1) - one.params[:, :4])/one.sd[:, :4]).abs().max() < .01


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('dtype', [torch.complex64, torch.complex128])
def test_precision_and_device(device, dtype):
    d, _, y = bare_data(10)
    one = fit(d, y)
    f = fit(d.to(device), y.to(device, dtype))
    assert f.params.device.type == device and f.params.dtype == torch.float64 and f.covariance.dtype == torch.float64
    same(one, f.each(torch.Tensor.cpu), .02)


def test_starts_do_not_matter_and_chunks_do_not_show(monkeypatch):
    d, truth, y = bare_data(32)
    one = fit(d, y)
    same(one, fit(d, y, start=truth), .03)
    done = []
    monkeypatch.setattr(fitting, '_chunk', lambda problem: 7)
    same(one, fit(d, y, progress=done.append))
    assert done == [7, 14, 21, 28, 32]


def test_jacobians_made_in_parts_do_not_show(monkeypatch):
    d, _, y = brain()
    one = fit(d, y)
    monkeypatch.setattr(fitting, '_at_once', lambda decoder, points, device: 4)
    same(one, fit(d, y))


# ---- the edges

def test_amounts_of_zero():
    d, _, _ = bare_data(1)
    g = torch.Generator().manual_seed(3)
    x = d.layout.join({'amplitudes': torch.tensor([[8., 0., 1.5, 0.]]), 'shift': 0., 'lorentzian': 6., 'phase': 0.})
    f = fit(d, d(x) + 3*math.sqrt(2)*torch.randn(300, ACQ.points, dtype=torch.complex64, generator=g))
    assert (f.params[:, :4] >= 0).all() and torch.isfinite(f.sd).all() and f.converged.all()
    assert .3 < (f.params[:, 3] == 0).double().mean() < .7  # the noise pulls half of them below
    z = (f.params[:, [0, 2]] - x[:, [0, 2]])/f.sd[:, [0, 2]]
    assert (z.std(0) - 1).abs().max() < .15


def test_noise_free_data_are_found_exactly():
    d, x, y = bare_data(20, sd=0.)
    f = fit(d, y)
    turn = torch.exp(1j*(f.params[:, -1] - x[:, -1].double()))
    assert (f.params[:, :4] - x[:, :4]).abs().max() < 2e-4 and (turn - 1).abs().max() < 1e-4 and f.converged.all()


def test_collinear_metabolites_share_and_say_so():
    "Two shapes that differ by a ten-thousandth: their sum is known, each of them is not, and nothing breaks"
    b = singlets()
    t = ACQ.time_axis()
    twin = b.fids[0]*torch.exp(2j*math.pi*1e-3*t)
    d = Decoder(Basis(torch.cat([b.fids, twin[None]]), b.names + ['NAAG'], acquisition=ACQ), ACQ)
    y = bare_data(20)[2]
    f, one = fit(d, y), fit(Decoder(b, ACQ), y)
    assert torch.isfinite(f.params).all() and torch.isfinite(f.sd).all()
    assert ((f.params[:, 0] + f.params[:, 4] - one.params[:, 0])/one.sd[:, 0]).abs().max() < 1
    assert (f.sd[:, 4] > 20*one.sd[:, 0]).all()
    w = torch.tensor([1., 0, 0, 0, 1.], dtype=torch.float64)
    total = (w @ f.covariance[:, :5, :5] @ w).sqrt()
    assert (total < 3*one.sd[:, 0]).all()


def test_equal_columns_do_not_break_the_fit():
    "A basis set with equal shapes is refused, but terms of the decoder may coincide"
    b = singlets()
    from deepmrs.decoder import Signals
    d = Decoder([Signals(b.fids, b.names), Signals(b.fids[:1], ['copy'], 'macromolecules')], ACQ)
    f = fit(d, bare_data(8)[2])
    assert torch.isfinite(f.params).all() and not (f.sd[:, :1] < f.noise[:, None]*1e-6).any()


def test_refusals():
    d, _, y = bare_data(2)
    for bad, word in ((lambda: fit(d, y[:, :500]), '500 points'), (lambda: fit(d, 0*y), 'zeros'), (lambda: fit(d, y, window=(30, 31)), 'window')):
        with pytest.raises(InputError, match=word): bad()
    short = ACQ.replace(points=3)
    with pytest.raises(InputError, match='too few'): fit(Decoder(singlets().replace(singlets().fids[:, :3], acquisition=short), short), y[:, :3])


def test_no_steps_is_the_start():
    d, x, y = bare_data(5)
    f = fit(d, y, start=x, max_steps=0)
    assert torch.allclose(f.params, x.double(), atol=1e-5) and torch.isfinite(f.sd).all() and (f.steps == 0).all()


def test_covariance_of_a_blind_parameter_is_infinite():
    H = torch.diag(torch.tensor([4., 0., 1e-6], dtype=torch.float64))[None]
    C = covariance(H, torch.ones(1, dtype=torch.float64))[0]
    assert math.isclose(float(C[0, 0]), .25, rel_tol=1e-6) and math.isinf(C[1, 1]) and math.isclose(float(C[2, 2]), 1e6, rel_tol=1e-6)


# ---- one contract for all kinds of models

T = ('shift', 'lorentzian', 'gaussian', 'phase', 'first_order_phase')
MODELS = {'bare': ('none', 'off', T[:2] + T[3:4]), 'voigt': ('none', 'off', T[:4]), 'all modulations': ('none', 'off', T), 'no phase': ('none', 'off', T[:2]),
          'summed': ('summed', 'off', T[:2] + T[3:4]), 'parametrised': ('parametrised', 'off', T[:2] + T[3:4]), 'classical': ('classical', 'off', T), 'baseline': ('none', 'moderate', T[:4]),
          'stiff': ('classical', 'stiff', T), 'flexible': ('classical', 'flexible', T), 'measured': ('measured', 'moderate', T), 'free lines': ({'kind': 'parametrised', 'shift': 'free', 'width': 'free'}, 'off', T[:2] + T[3:4]),
          'gaussian lines': ({'kind': 'summed', 'shape': 'gaussian', 'shift': 'paper'}, 'off', T[:2] + T[3:4])}


@pytest.mark.parametrize('kind', MODELS)
def test_every_model_finds_its_own_spectra(kind):
    mm, baseline, mods = MODELS[kind]
    acq = ACQ.replace(points=2048)
    measured = torch.exp((2j*math.pi*acq.to_hz(2.2) - 150)*acq.time_axis()) if mm == 'measured' else None
    d, _, _ = make_decoder(singlets(acq), acq, Preset('test', '1', mm, baseline, mods), measured=measured)
    g = torch.Generator().manual_seed(0)
    n, lay = 8, d.layout
    x = lay.start(torch.zeros(1)).repeat(n, 1)
    x[:, :4] = 2 + 6*torch.rand(n, 4, generator=g)
    if 'macromolecules' in lay: x[:, lay.slices['macromolecules']] = .5 + torch.rand(n, len(lay.blocks['macromolecules'].labels), generator=g)
    for k, v in (('shift', 3.), ('lorentzian', 7.), ('gaussian', 6.), ('phase', .4), ('line_lorentzian', 5.)):
        if k in lay: x[:, lay.slices[k]] = v
    if 'baseline' in lay: x[:, lay.slices['baseline']] = 100*torch.sin(torch.linspace(0, 4, len(lay.blocks['baseline'].labels)))
    y = d(x) + 1.*torch.randn(n, 2048, dtype=torch.complex64, generator=g)
    f = fit(d, y)
    assert f.params.shape == (n, lay.size) and f.covariance.shape == (n, lay.size, lay.size)
    if kind == 'free lines': return  # 36 widths and shifts under four metabolites: more than these data say
    assert f.converged.all()
    assert torch.isfinite(f.params).all() and not f.sd.isnan().any() and (f.covariance - f.covariance.mT).abs().nan_to_num(0, 0, 0).max() <= 1e-6*f.covariance.abs().nan_to_num(0, 0, 0).max()
    assert (f.params >= lay.lower(f.params) - 1e-6).all() and (f.params[:, :4] > 0).all()
    z = (f.params[:, :4] - x[:, :4])/f.sd[:, :4]
    assert z.square().mean().sqrt() < 2.2, z
    per_part = f.noise/(1 if d.plain else math.sqrt(2048))
    assert (per_part*math.sqrt(2) - 1).abs().max() < .12  # noise sd of a complex number is 1
