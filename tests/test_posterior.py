"The posterior against closed forms, numerical integration and Markov chains that call the decoder."
import math

import numpy as np
import pytest
import torch
from scipy import stats

from deepmrs.basis import Basis
from deepmrs.core import Acquisition, InputError
from deepmrs.decoder import Decoder
from deepmrs.fitting import Fit, fit
from deepmrs.model import make_decoder
from deepmrs.posterior import MOSTLY_PRIOR, box_gaussian, draw, guess, known, log_guess, marginal_box, posterior, truncated_cdf, truncated_moments, truncated_quantile
from deepmrs.simulate import Correlated, Normal, Simulator, Uniform, brain_priors

INF = math.inf
D = lambda *v: torch.tensor(v, dtype=torch.float64)
LINES = {'NAA': [(2.008, 3)], 'Cr': [(3.027, 3), (3.913, 2)], 'PCr': [(3.029, 3), (3.93, 2)], 'GPC': [(3.212, 9)]}
PRIOR = {'amplitudes': Uniform(0., 8.), 'shift': Uniform(-5., 5.), 'lorentzian': Uniform(0., 15.), 'phase': Uniform(-.5, .5)}


@pytest.fixture(scope='module')
def basis():
    acq = Acquisition(2.5e-4, 123.2, 512)
    t = acq.time_axis(dtype=torch.float64)
    return Basis(torch.stack([sum(h*torch.exp((2j*math.pi*acq.to_hz(q) - 3)*t) for q, h in ls) for ls in LINES.values()]), list(LINES), acquisition=acq)


@pytest.fixture(scope='module')
def simulated(basis):
    "(decoder, batch, fit) of 1,500 spectra with Cr and PCr hardly apart"
    decoder = Decoder(basis, basis.acquisition)
    batch = Simulator(decoder, PRIOR, 12.)(1500, torch.Generator().manual_seed(0))
    return decoder, batch, fit(decoder, batch.fids)


def test_one_dimension_is_scipys():
    g = np.random.default_rng(0)
    m, s = g.normal(0, 3, 300), g.uniform(.2, 3, 300)
    lo = g.normal(0, 1, 300); hi = np.where(g.random(300) < .3, np.inf, lo + g.uniform(.1, 5, 300)); lo = np.where(g.random(300) < .2, -np.inf, lo)
    want = stats.truncnorm((lo - m)/s, (hi - m)/s, m, s)
    args = [torch.from_numpy(v) for v in (m, s, lo, hi)]
    mean, var = truncated_moments(*args)
    assert np.allclose(mean, want.mean(), atol=1e-8) and np.allclose(var, want.var(), rtol=1e-5)
    for p in (.025, .5, .9):
        x = truncated_quantile(torch.full_like(args[0], p), *args)
        assert np.allclose(x, want.ppf(p), rtol=1e-6, atol=1e-7) and np.allclose(truncated_cdf(x, *args), p, atol=1e-7)


def test_far_tails_keep_their_digits():
    "An interval 60 sds out: the exponential distribution"
    mean, var = truncated_moments(D(-60.), D(1.), D(0.), D(INF))
    assert math.isclose(mean, 1/60, rel_tol=1e-3) and math.isclose(var, 1/3600, rel_tol=2e-3)
    assert math.isclose(truncated_quantile(D(.5), D(-60.), D(1.), D(0.), D(INF)), math.log(2)/60, rel_tol=1e-3)


@pytest.mark.parametrize('r', [-.9, -.5, .3, .9])
@pytest.mark.parametrize('high', [1.5, 40.])
def test_two_dimensions_against_a_grid(r, high):
    C = torch.tensor([[1., r], [r, .5**2/.25]], dtype=torch.float64)
    L, at = torch.linalg.inv(C), D(.4, 1.1)
    e = box_gaussian(L[None], (L @ at)[None], torch.zeros(1, 2).double(), torch.full((1, 2), high).double())
    g = (torch.arange(1500, dtype=torch.float64) + .5)/1500*min(high, 7)
    X = torch.stack(torch.meshgrid(g, g, indexing='ij'), -1)
    p = torch.exp(-((X - at)*((X - at) @ L)).sum(-1)/2); p = p/p.sum()
    mean = (p[..., None]*X).sum((0, 1)); C = torch.einsum('ab,abi,abj->ij', p, X - mean, X - mean); sd = C.diagonal().sqrt()
    assert e.converged.all() and ((e.mean[0] - mean)/sd).abs().max() < .02
    assert (e.covariance[0].diagonal().sqrt()/sd - 1).abs().max() < (.06 if abs(r) > .8 else .02)
    corr = lambda M: float(M[0, 1]/(M[0, 0]*M[1, 1]).sqrt())
    assert abs(corr(e.covariance[0]) - corr(C)) < .06


def test_without_a_box_it_is_the_gaussian():
    A = torch.randn(5, 9, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    L, h, inf = A.mT @ A, A.sum(1), torch.full((5, 6), INF, dtype=torch.float64)
    e = marginal_box(L, h, -inf, inf)
    assert torch.allclose(e.covariance, torch.linalg.inv(L), rtol=1e-6) and torch.allclose(e.mean, torch.linalg.solve(L, h), rtol=1e-6)


def test_parameters_without_ends_can_be_taken_out():
    "With and without the Schur complement: the same"
    A = torch.randn(8, 12, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    L, h = A.mT @ A, 3*torch.randn(8, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    low, high = torch.full((8, 6), -INF).double(), torch.full((8, 6), INF).double()
    low[:, [0, 2, 3]] = 0.; high[:, 3] = .4
    a, b = marginal_box(L, h, low, high), box_gaussian(L, h, low, high)
    sd = b.covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    assert ((a.mean - b.mean)/sd).abs().max() < 5e-3 and (a.covariance - b.covariance).abs().max() < 5e-3*b.covariance.abs().max()


def test_degenerate_precision_is_held_by_the_box():
    "Two amounts of which only the sum is known, and one of which nothing is known"
    L = torch.zeros(1, 3, 3).double(); L[0, :2, :2] = 100.
    e = box_gaussian(L, D(100., 100., 0.)[None], torch.zeros(1, 3).double(), torch.full((1, 3), 2.).double())
    assert e.converged.all() and torch.allclose(e.mean, D(.5, .5, 1.)[None], atol=.03) and math.isclose(e.covariance[0, 2, 2], 4/12, rel_tol=1e-3)
    e = box_gaussian(L[:, :2, :2], D(100., 100.)[None], torch.zeros(1, 2).double(), torch.full((1, 2), INF).double())
    assert e.converged.all() and torch.allclose(e.mean, D(.5, .5)[None], atol=.03) and abs(e.covariance[0, 0, 0].sqrt() - 1/math.sqrt(12)) < .06


def test_intervals_hold(simulated):
    decoder, batch, f = simulated
    p = posterior(decoder, batch.fids, f, prior=PRIOR)
    u, truth = p.cdf(batch.params), batch.params.double()
    assert p.converged.all() and ((p.mean > p.low) & (p.mean < p.high)).all()
    for share, far in ((.5, .045), (.8, .035), (.95, .02)):
        held = ((u - .5).abs() < share/2).double().mean(0)
        assert (held - share).abs().max() < far, held
    z = (p.mean - truth)/p.sd
    assert z.mean(0).abs().max() < .1 and (z.std(0) - 1).abs().max() < .06
    rms = lambda e: e.square().mean(0).sqrt()
    assert (rms(p.mean - truth) < 1.01*rms(f.params - truth)).all() and rms(p.mean - truth)[1] < .9*rms(f.params - truth)[1]
    between = p.quantiles.diff(dim=1)
    assert (between > 0).all() and torch.allclose(p.quantile(.5), p.quantiles[:, 2], atol=1e-9)


def test_averaging_takes_the_bias_of_the_damping_away(simulated):
    "The expansion at one point puts the damping too low"
    decoder, batch, f = simulated
    k = decoder.layout.slices['lorentzian']
    z = [float(((p.mean - batch.params)/p.sd)[:, k].mean()) for p in (posterior(decoder, batch.fids, f, prior=PRIOR, pairs=n) for n in (0, 4))]
    assert z[0] < -.04 and abs(z[1]) < abs(z[0]) + .02


def test_chains_agree(simulated):
    "emcee calls the decoder and knows nothing of the expansion; stretch moves, starts from the prior"
    emcee = pytest.importorskip('emcee', reason='emcee is a requirement of development')
    decoder, batch, f = simulated
    p = posterior(decoder, batch.fids[:2], Fit(**{k: v[:2] for k, v in vars(f).items() if isinstance(v, torch.Tensor)}), prior=PRIOR)
    for i in range(2):
        low, high, y = p.low[i].numpy(), p.high[i].numpy(), batch.fids[i]

        def log_probability(X):
            with torch.no_grad(): r = torch.view_as_real(decoder(torch.from_numpy(X).float()) - y).flatten(1).double()
            return np.where(((X > low) & (X < high)).all(1), -r.square().sum(-1).numpy()/(2*float(f.noise[i])**2), -np.inf)

        s = emcee.EnsembleSampler(32, len(low), log_probability, vectorize=True)
        s._random = np.random.RandomState(i)
        s.run_mcmc(np.random.default_rng(i).uniform(low, high, (32, len(low))), 2500)
        x = s.get_chain(discard=700, flat=True)
        away, ratio = (p.mean[i].numpy() - x.mean(0))/x.std(0), p.sd[i].numpy()/x.std(0)
        assert np.abs(away).max() < .15 and np.abs(ratio - 1).max() < .12, (away, ratio)


def test_draws(simulated):
    decoder, batch, f = simulated
    p = posterior(decoder, batch.fids[:50], fit(decoder, batch.fids[:50]), prior=PRIOR)
    g = lambda: torch.Generator().manual_seed(0)
    x = p.samples(2000, g())
    assert torch.equal(x, p.samples(2000, g())) and ((x >= p.low[:, None]) & (x <= p.high[:, None])).all()
    assert ((x.mean(1) - p.mean)/p.sd).square().mean().sqrt() < .05 and (x.std(1)/p.sd - 1).abs().max() < .15
    y, density = guess(p, 100, g())
    assert torch.allclose(density, log_guess(p, y), atol=1e-3)
    W = torch.zeros(1, decoder.layout.size); W[0, 1:3] = 1  # Cr + PCr: known far better than either
    mean, sd, q = p.derived(W, g())
    assert (sd[:, 0]/p.sd[:, 1]).median() < .6 and (q.diff(dim=1) > 0).all()
    ratio = p.derived(torch.eye(decoder.layout.size)[:1], g(), reference=W[0])[0][:, 0]
    assert torch.allclose(ratio, p.mean[:, 0]/mean[:, 0], rtol=.3)


def test_data_share(simulated):
    decoder, batch, f = simulated
    p = posterior(decoder, batch.fids, f, prior=PRIOR)
    assert torch.allclose(p.data_share, (1 - p.sd[:, :4]**2/(64/12)).clamp(0, 1)) and p.data_share[:, 3].median() > .99
    assert torch.equal(p.mostly_prior, p.data_share < MOSTLY_PRIOR)
    assert (posterior(decoder, batch.fids, f).data_share == 1).all()  # only not negative: no prior to lean on
    loud = batch.fids[:50] + 3000*torch.randn(50, 512, dtype=torch.complex64, generator=torch.Generator().manual_seed(1))
    assert posterior(decoder, loud, fit(decoder, loud), prior=PRIOR).data_share[:, :3].median() < .3


def test_normal_priors_are_information(basis):
    "With a sharp normal prior the posterior is the prior; with a wide one the fit"
    decoder = Decoder(basis, basis.acquisition)
    truth = decoder.layout.join({'amplitudes': torch.full((20, 4), 3.), 'lorentzian': 5.})
    y = decoder(truth) + 12*torch.randn(20, 512, dtype=torch.complex64, generator=torch.Generator().manual_seed(1))
    f = fit(decoder, y)
    sharp = posterior(decoder, y, f, prior={'amplitudes': Normal([1., 2., 3., 4.], 1e-3, at_least=0.)})
    assert torch.allclose(sharp.mean[:, :4], D(1., 2., 3., 4.).expand(20, 4), atol=.01) and sharp.data_share[:, :3].max() < .05
    wide = posterior(decoder, y, f, prior={'amplitudes': Normal(3., 1e3)}, pairs=0)
    assert ((wide.mean - f.params)/f.sd)[:, [0, 3]].abs().max() < .3


def test_bad_input(simulated):
    decoder, batch, f = simulated
    y = batch.fids[:4].clone(); y[1, 3] = math.nan; y[2] = 0
    some = Fit(**{k: v[:4] for k, v in vars(f).items() if isinstance(v, torch.Tensor)})
    p = posterior(decoder, y, some, prior=PRIOR)
    assert p.mean[1:3].isnan().all() and p.data_share[1].isnan().all() and p.mean[[0, 3]].isfinite().all() and p.converged.tolist() == [True, False, False, True]
    assert p.samples(5, torch.Generator().manual_seed(0))[[1, 2]].isnan().all()
    alone = posterior(decoder, y[3:], Fit(**{k: v[3:4] for k, v in vars(f).items() if isinstance(v, torch.Tensor)}), prior=PRIOR)
    assert torch.allclose(alone.mean[0], p.mean[3], rtol=1e-3, atol=1e-3)  # neighbours do not matter
    with pytest.raises(InputError, match='fit of these'): posterior(decoder, y, f)
    for wrong, text in (({'nonsense': Uniform(0, 1)}, 'nonsense'), ({'amplitudes': Uniform(-3, -1)}, 'no room'), ({'shift': (0, 1)}, 'must be Uniform')):
        with pytest.raises(InputError, match=text): known(decoder, wrong)


def test_an_amount_that_leaves_no_trace(basis):
    "An empty signal: nothing is known of it without a prior; with one, the prior"
    decoder = Decoder(Basis(torch.cat([basis.fids, basis.fids[:1].conj()]), [*basis.names, 'Ala'], acquisition=basis.acquisition), basis.acquisition)
    decoder.fids[4] = 0
    x = decoder.layout.join({'amplitudes': torch.full((3, 5), 3.), 'lorentzian': 5.})
    y = decoder(x) + 5*torch.randn(3, 512, dtype=torch.complex64, generator=torch.Generator().manual_seed(1))
    p = posterior(decoder, y, fit(decoder, y))
    assert torch.isinf(p.sd[:, 4]).all() and p.mean[:, 4].isnan().all() and (p.data_share[:, 4] == 0).all() and p.mean[:, :4].isfinite().all() and p.sd[:, :4].isfinite().all()
    assert p.samples(20, torch.Generator().manual_seed(0))[:, :, :4].isfinite().all()
    p = posterior(decoder, y, fit(decoder, y), prior=PRIOR)
    assert torch.allclose(p.mean[:, 4], D(4., 4., 4.), atol=.02) and p.data_share[:, 4].max() < .01


def test_complete_model(basis):
    "Baseline, macromolecules, soft ratios: intervals of a model of the living brain"
    decoder = make_decoder(basis, preset='brain-3t')[0]
    batch = Simulator(decoder, brain_priors(decoder), noise_sd=2.)(8, torch.Generator().manual_seed(1))
    f = fit(decoder, batch.fids)
    p = posterior(decoder, batch.fids, f)
    assert p.converged.all() and p.mean.isfinite().all() and (p.mean[:, :decoder.linear] >= 0).all()
    assert (p.data_share[:, [0, 3]] == 1).all() and p.data_share.min() < .9  # soft ratios hold some macromolecules
    free = f.params[:, 3] > 6*f.sd[:, 3]  # GPC, far from zero
    assert free.any() and (p.sd/f.sd)[free, 3].median() < 1.1 and (p.sd/f.sd)[free, 3].median() > .7
