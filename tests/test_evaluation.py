"Evaluation: measures against hand-made cases, studies that repeat, odd input"
import importlib.util
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import linregress

from deepmrs.basis import Basis
from deepmrs.core import Acquisition, InputError
from deepmrs.evaluation import (COMBINED, agreement, answer, combination_weights, combine, error_against, error_measures, headline, judge, metrics,
                                monte_carlo, peak_snr, plot_by_method, plot_coverage, plot_true_estimated, study, trials)
from deepmrs.model import make_decoder
from deepmrs.simulate import Simulator, Uniform, paper_priors

ROOT = Path(__file__).parents[1]
RESULTS = ROOT/'nbs/results'
SEED_FILES = Path(__file__).parents[2]/'shared/data/seed'


def toy(points=256):
    "(bare decoder of three singlets, its priors)"
    acq = Acquisition(5e-4, 123.2, points)
    t = acq.time_axis(dtype=torch.float64)
    lines = {'NAA': [(2.008, 3)], 'Cr': [(3.027, 3), (3.913, 2)], 'PCr': [(3.029, 3), (3.93, 2)]}
    fids = torch.stack([sum(h*torch.exp((2j*math.pi*acq.to_hz(q) - 6)*t) for q, h in ls) for ls in lines.values()])
    decoder = make_decoder(Basis(fids, list(lines), acquisition=acq), preset='none')[0]
    return decoder, paper_priors(decoder)


def test_measures_are_those_of_scipy():
    rng = np.random.default_rng(1)
    t = rng.uniform(1, 4, 500)
    e = .3 + .8*t + .2*rng.standard_normal(500)
    m, r = error_measures(t, e), linregress(t, e)
    assert m['slope'] == pytest.approx(r.slope) and m['intercept'] == pytest.approx(r.intercept) and m['correlation'] == pytest.approx(r.rvalue)
    assert m['mse'] == pytest.approx(m['rmse']**2) and m['mape'] == pytest.approx(100*np.mean(abs(e - t)/t)) and m['bias'] == pytest.approx((e - t).mean())
    assert m['r2'] == pytest.approx(1 - ((e - t)**2).sum()/((t - t.mean())**2).sum())


def test_estimates_of_nan_are_left_out_and_counted():
    t = np.tile(np.linspace(1, 2, 50)[:, None], (1, 2))
    e = t.copy()
    e[:10, 0], e[:, 1] = np.nan, np.nan
    m = metrics(t, e, ['a', 'b'], np.ones_like(t), np.ones_like(t), [1., 1.]).set_index('metabolite')
    assert m.n.tolist() == [40, 0] and m.rmse['a'] == 0 and m.coverage_95['a'] == 1
    assert m.drop(columns='n').loc['b'].isna().all()


def test_an_unknown_sd_is_no_excuse():
    t = np.ones((10, 1))
    sd = np.full((10, 1), 1.)
    sd[:5] = np.nan
    assert metrics(t, t, ['a'], sd).coverage_95[0] == .5


def test_constant_and_zero_truth_give_nan_not_nonsense():
    m = metrics(np.zeros((20, 1)), np.random.default_rng(0).normal(size=(20, 1)), ['a']).iloc[0]
    assert math.isnan(m.slope) and math.isnan(m.r2) and math.isnan(m['mape']) and m.rmse > 0
    still = metrics(np.linspace(0, 1, 20)[:, None], np.full((20, 1), .5), ['a']).iloc[0]
    assert still.slope == pytest.approx(0) and math.isnan(still.correlation)


@pytest.mark.parametrize('off,expected', [(1., .95), (2., .6731)])
def test_coverage_counts_intervals(off, expected):
    e = off*np.random.default_rng(2).standard_normal((40_000, 1))
    assert metrics(np.zeros_like(e), e, ['a'], np.ones_like(e)).coverage_95[0] == pytest.approx(expected, abs=.008)


def test_shapes_that_differ_are_refused():
    for t, e, names in ((np.ones((4, 2)), np.ones((4, 3)), 'ab'), (np.ones((4, 2)), np.ones((4, 2)), 'abc'), (np.ones(4), np.ones(4), 'a')):
        with pytest.raises(InputError): metrics(t, e, list(names))


def test_combinations_need_all_parts_and_take_aliases():
    assert list(combination_weights(['NAA', 'Cr', 'PCr', 'mI', 'Gly'])) == ['Cr+PCr', 'Ins+Gly']
    assert combination_weights(['NAA']) == {} and len(combination_weights([n for g in COMBINED for n in g])) == len(COMBINED)


def test_combined_error_is_that_of_draws():
    g = torch.Generator().manual_seed(0)
    A = torch.randn(3, 3, generator=g, dtype=torch.float64)
    C, w = A @ A.T, torch.tensor([1., 0., 2.], dtype=torch.float64)
    draws = torch.randn(100_000, 3, generator=g, dtype=torch.float64) @ torch.linalg.cholesky(C).T
    value, sd = combine(torch.zeros(1, 3), [w], C[None])
    assert float(sd) == pytest.approx(float((draws @ w).std()), rel=.02) and float(value) == 0
    assert combine(torch.ones(2, 3), [w])[1] is None


def test_blind_amplitudes_do_not_spoil_other_sums():
    C = torch.diag(torch.tensor([1., math.inf, 1.], dtype=torch.float64))[None]
    _, sd = combine(torch.ones(1, 3), [torch.tensor([1., 0., 1.]), torch.tensor([1., 1., 0.])], C)
    assert float(sd[0, 0]) == pytest.approx(math.sqrt(2)) and not math.isfinite(float(sd[0, 1]))


def test_all_methods_see_the_same_spectra_and_all_levels_the_same_parameters():
    decoder, priors = toy()
    seen = []
    model = lambda y: (seen.append(y.clone()), decoder.layout.start(y.real).expand(len(y), -1))[1]
    out = list(trials(decoder, priors, (1., .5), ('fit', 'network', 'hybrid', 'prior'), 20, model, seed=4))
    assert [(t.noise_sd, t.method) for t in out] == [(s, m) for s in (1., .5) for m in ('fit', 'network', 'hybrid', 'prior')]
    assert all(torch.equal(t.truth, out[0].truth) for t in out) and torch.equal(seen[0], seen[1]) and torch.equal(seen[2], seen[3])
    assert torch.allclose(seen[0] - seen[2], seen[2] - decoder(out[0].truth), atol=1e-4)  # half of the same noise is left
    assert torch.allclose(out[0].bound, 4*out[4].bound)


def test_studies_repeat():
    decoder, priors = toy()
    one, two, other = (study(decoder, priors, (.5,), n=40, seed=s).drop(columns='seconds') for s in (1, 1, 2))
    pd.testing.assert_frame_equal(one, two)
    assert not one.rmse.equals(other.rmse) and set(one.kind) == {'metabolite', 'combined'}


def test_fit_reaches_its_bound_and_the_middle_does_not_look():
    decoder, priors = toy()
    f = study(decoder, priors, (.5,), n=3000).set_index(['method', 'metabolite'])
    assert f.rmse_over_crlb['fit', 'NAA'] == pytest.approx(1, abs=.04) and f.coverage_95['fit', 'NAA'] == pytest.approx(.95, abs=.015)
    assert f.rmse_over_prior_sd['prior', 'NAA'] == pytest.approx(1, abs=.03) and f.slope['prior', 'NAA'] == pytest.approx(0, abs=1e-6)
    assert f.bound_percent['fit', 'Cr+PCr'] < .3*f.bound_percent['fit', 'Cr']  # the sum is far better known
    h = headline(f.reset_index(), 25)
    assert h.rmse_over_crlb[.5, 'fit'] < 1.05 and h.amplitudes[.5, 'fit'] == h.amplitudes[.5, 'prior']


def test_a_wrong_model_shows():
    decoder, priors = toy()
    half = lambda y: decoder.layout.join({'amplitudes': torch.full((len(y), 3), .2)})
    f = study(decoder, priors, (.2,), ('network', 'hybrid'), 300, half).set_index(['method', 'metabolite'])
    assert f.rmse_over_crlb['network', 'NAA'] > 5 and f.coverage_95['network', 'NAA'] < .5 and f.rmse_over_crlb['hybrid', 'NAA'] < 1.15
    assert math.isnan(f.converged['network', 'NAA']) and f.converged['hybrid', 'NAA'] > .99


def test_macromolecules_and_windows_are_studied_too():
    acq = Acquisition(5e-4, 123.2, 512)
    t = acq.time_axis(dtype=torch.float64)
    basis = Basis(torch.stack([3*torch.exp((2j*math.pi*acq.to_hz(q) - 6)*t) for q in (2.008, 3.027)]), ['NAA', 'Cr'], acquisition=acq)
    decoder, used, _ = make_decoder(basis, preset='brain-3t')
    priors = {'amplitudes': Uniform(5., 10.), 'macromolecules': Uniform(1., 2.), 'lorentzian': Uniform(2., 8.), 'gaussian': Uniform(2., 8.)}
    f = study(decoder, priors, (.5,), n=20, window=used.window)
    assert set(f.kind) == {'metabolite', 'macromolecule'} and np.isfinite(f.rmse_over_crlb).all()


def test_monte_carlo_sees_a_bias():
    decoder, priors = toy()
    middle = Simulator(decoder, priors).moments()[0]
    fair, x = monte_carlo(decoder, middle, .3, 400)
    assert x.shape == (400, decoder.layout.size) and list(fair.parameter) == decoder.layout.labels
    assert (fair.bias.abs() < 4.5*fair.bias_se).all() and (fair.sd_over_crlb - 1).abs().max() < .15
    off, _ = monte_carlo(decoder, middle, .3, 50, 'network', lambda y: (1.1*middle).expand(len(y), -1))
    assert off.bias[0] == pytest.approx(.1*float(middle[0]), rel=1e-3) and off.sd[0] < 1e-6
    with pytest.raises(InputError): monte_carlo(decoder, middle, .3, method='prior')


def test_error_against_bins():
    t, v = np.ones((90, 1)), np.arange(90.)
    e = t + (v >= 60)[:, None]
    d = error_against(t, e, v, ['a'], 3)
    assert d.n.tolist() == [30, 30, 30] and d.bias.tolist() == [0, 0, 1] and d.centre.tolist() == [14.5, 44.5, 74.5]
    assert error_against(t, e, v, ['a'], [0, 10, 20]).n.tolist() == [10, 11]  # the last edge belongs to its bin, what lies outside to none
    with pytest.raises(InputError): error_against(t, e, v, ['a'], [200, 300])


def test_peak_snr_of_a_known_line():
    decoder, _ = toy(1024)
    x = decoder.layout.join({'amplitudes': torch.tensor([[2., 9., 9.]]), 'lorentzian': 0.})
    top = 2*3/(1 - math.exp(-6*5e-4))  # sum of the decaying line, on resonance
    found = float(peak_snr(decoder, x, .1)[0]*.1*32)
    assert .7*top < found < 1.01*top  # the highest point may lie half a step beside the line
    assert float(peak_snr(decoder, x, .1)[0]) == pytest.approx(2*float(peak_snr(decoder, x, .2)[0]))


def test_agreement_of_two():
    rng = np.random.default_rng(0)
    a = rng.uniform(1, 2, (5000, 1))
    row = agreement(a + .1*rng.standard_normal(a.shape) + .3, a, ['x']).iloc[0]
    assert row.difference == pytest.approx(.3, abs=.01) and row.high - row.low == pytest.approx(2*1.96*.1, rel=.05)
    a[:, 0] = np.nan
    assert agreement(a, a, ['x']).n[0] == 0


@pytest.mark.parametrize('method', ['guess', 'network', 'hybrid'])
def test_methods_that_cannot_be_are_refused(method):
    decoder, priors = toy()
    with pytest.raises(InputError): answer(decoder, torch.ones(2, 256, dtype=torch.complex64), method, Simulator(decoder, priors))


def test_figures_return_axes():
    plt = pytest.importorskip('matplotlib.pyplot')
    decoder, priors = toy()
    f = study(decoder, priors, (.5,), n=50)
    for ax in (plot_by_method(f), plot_coverage(f), plot_true_estimated(np.arange(5.), np.arange(5.)), plot_true_estimated(np.ones(5), np.arange(5.))): assert len(ax.lines)
    plt.close('all')


# ── the stored results ──

def study_script():
    "The script of the bare study, as a module"
    spec = importlib.util.spec_from_file_location('bare_study_run', RESULTS/'bare_study_run.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_stored_study_meets_its_targets():
    d = pd.read_csv(RESULTS/'bare_study.csv')
    assert set(d.noise_sd) == {1.35, .45, .135} and (d.n >= 10_000).all() and {'simulated', 'paper'} == set(d.basis)
    for b, part in d.groupby('basis'):
        h = headline(part).reset_index()
        assert (h[h.method.isin(['fit', 'hybrid'])].rmse_over_crlb <= 1.03).all()
    o = pd.read_csv(RESULTS/'bare_study_oracle.csv')
    assert (o['within_0.05'] >= .999).all() and (o.spectra >= 1000).all()


def test_the_simulated_set_has_the_snr_that_is_claimed():
    run = study_script()
    decoder = run.make(*run.simulated_set(), points=2048)
    x = Simulator(decoder, paper_priors(decoder)).sample(1500, torch.Generator().manual_seed(5))
    for sd, snr in zip(run.LEVELS, (10, 30, 100)): assert float(peak_snr(decoder, x, sd).median()) == pytest.approx(snr, rel=.04)


def test_the_basis_of_the_paper_has_it_too():
    if not SEED_FILES.exists(): pytest.skip('the paper\'s files are not at ../shared/data/seed')
    run = study_script()
    decoder = run.make(*run.paper_set(), points=2048)
    x = Simulator(decoder, paper_priors(decoder)).sample(1500, torch.Generator().manual_seed(5))
    for sd, snr in zip(run.LEVELS, (10, 30, 100)): assert float(peak_snr(decoder, x, sd).median()) == pytest.approx(snr, rel=.04)


def test_the_stored_study_repeats():
    "A small sample of the simulated study, made now, agrees with what is stored"
    run = study_script()
    decoder = run.make(*run.simulated_set())
    now = judge(next(trials(decoder, paper_priors(decoder), (.45,), ('fit',), 1500, seed=77))).set_index('metabolite')
    d = pd.read_csv(RESULTS/'bare_study.csv').query('basis == "simulated" and method == "fit" and noise_sd == .45').set_index('metabolite')
    assert np.allclose(now.rmse/d.rmse[now.index], 1, atol=.09) and np.allclose(now.bound_percent/d.bound_percent[now.index], 1, atol=.05)


def test_tables_are_merged_by_key(tmp_path):
    put, f = study_script().put, tmp_path/'t.csv'
    put(f, pd.DataFrame({'method': ['fit', 'hybrid'], 'noise_sd': [.45, .45], 'x': [1, 2]}), ('method', 'noise_sd'))
    put(f, pd.DataFrame({'method': ['fit', 'fit'], 'noise_sd': [.45, .135], 'x': [7, 8]}), ('method', 'noise_sd'))
    assert sorted(pd.read_csv(f).x) == [2, 7, 8]
