"Calibration: three forms of one claim, honest and dishonest claims told apart, odd input"
import math

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, norm

from deepmrs.calibration import Stated, calibration, plot_ranks, plot_reliability, rank_test, reliability, wilson
from deepmrs.core import InputError

NAMES = ['a', 'b']


def claims(off=1., bias=0., n=4000):
    "(truth [B, 2], mean, sd): errors `off` times as large as stated"
    rng = np.random.default_rng(1)
    sd = rng.uniform(.5, 2, (n, 2))
    mean = rng.normal(5, 3, (n, 2))
    return mean + sd*(off*rng.standard_normal((n, 2)) + bias), mean, sd


def forms(mean, sd, draws=300):
    p = np.linspace(.01, .99, 99)
    return {'normal': Stated(mean, sd), 'quantiles': Stated(quantiles=mean[:, None] + sd[:, None]*norm.ppf(p)[:, None], levels=p),
            'samples': Stated(samples=mean[:, None] + sd[:, None]*np.random.default_rng(2).standard_normal((len(mean), draws, 2)))}


@pytest.mark.parametrize('form', ['normal', 'quantiles', 'samples'])
def test_honest_claims_hold(form):
    truth, mean, sd = claims()
    s = forms(mean, sd)[form]
    d = calibration(truth, s, NAMES, [3., 3.])
    assert len(d) == 9 and (abs(d.coverage - d.level) < 2.).all() and (d.n == 4000).all()
    assert d[d.metabolite != 'all'].sharpness.between(.3, .5).all() and ((d.low < d.coverage) & (d.coverage < d.high)).all()
    assert (rank_test(s.cdf(truth), NAMES).p > 1e-3).all()
    assert np.allclose(reliability(s.cdf(truth), [.5, .95]), [[.5], [.95]], atol=.03)


@pytest.mark.parametrize('form', ['normal', 'quantiles', 'samples'])
@pytest.mark.parametrize('off, bias', [(2., 0.), (.5, 0.), (1., 1.)])
def test_dishonest_claims_show(form, off, bias):
    truth, mean, sd = claims(off, bias)
    s = forms(mean, sd)[form]
    d, r = calibration(truth, s, NAMES).set_index(['metabolite', 'level']), rank_test(s.cdf(truth), NAMES)
    expected = {l: 100*(norm.cdf(norm.ppf(.5 + l/200)/off - bias) - norm.cdf(-norm.ppf(.5 + l/200)/off - bias)) for l in (50, 80, 95)}
    for l, want in expected.items(): assert d.coverage['a', l] == pytest.approx(want, abs=2.5)
    assert not d.honest['all', 50] and (r.p < 1e-6).all()
    if bias: assert (r['mean'] > .6).all()
    else: assert ((r.spread - 1)*(off - 1) > .05).all()


def test_of_three_forms_one():
    m = np.ones((3, 2))
    for wrong in (lambda: Stated(), lambda: Stated(m), lambda: Stated(m, m, samples=m[:, None]), lambda: Stated(quantiles=m[:, None]), lambda: Stated(m, levels=[.5])):
        with pytest.raises(InputError, match='one form'): wrong()
    for levels in ([.9, .1], [0., .5], [.5], [.5, .5]):
        with pytest.raises(InputError, match='rise'): Stated(quantiles=np.ones((3, 2, 2)), levels=levels)
    with pytest.raises(InputError, match='names'): calibration(m, Stated(m, m), ['a'])


def test_quantiles_between_and_beyond():
    q = np.array([0., 1., 3.]).reshape(1, 3, 1)
    s = Stated(quantiles=q, levels=[.1, .5, .9])
    for t, u in ((-1., .05), (.5, .3), (1., .5), (2., .7), (9., .95)): assert s.cdf(np.array([[t]]))[0, 0] == pytest.approx(u)
    for p, v in ((.01, 0.), (.1, 0.), (.3, .5), (.5, 1.), (.7, 2.), (.9, 3.), (.99, 3.)): assert s.quantile(p)[0, 0] == pytest.approx(v)
    assert Stated(quantiles=np.full((1, 2, 1), 2.), levels=[.2, .8]).cdf(np.array([[2.]]))[0, 0] == pytest.approx(.1)  # never NaN


def test_samples_that_tie_are_even():
    "All probability at zero, the truth at zero: u is uniform, not a spike"
    u = Stated(samples=np.zeros((5000, 20, 1))).cdf(np.zeros((5000, 1)))
    assert rank_test(u, ['a']).p[0] > 1e-3 and (0 < u).all() and (u < 1).all()


def test_no_answer_and_no_error():
    "An estimate of NaN is left out; an error of NaN or zero is no excuse"
    t, m, s = np.ones((10, 1)), np.ones((10, 1)), np.ones((10, 1))
    m[:2], s[2:4], s[4:6], m[4:6] = np.nan, np.nan, 0., 2.
    d = calibration(t, Stated(m, s), ['a'])
    assert (d.n[d.metabolite == 'a'] == 8).all() and d.coverage.iloc[0] == pytest.approx(50.)
    nothing = calibration(t, Stated(m*np.nan, s), ['a'])
    assert nothing.coverage[nothing.metabolite == 'a'].isna().all() and not nothing.honest.any() and math.isnan(rank_test(m*np.nan, ['a']).p[0])


def test_spectra_are_counted_not_amounts():
    "Amounts of one spectrum that err together: the interval of all is as wide as that of one"
    rng = np.random.default_rng(0)
    e = np.repeat(rng.standard_normal((500, 1)), 30, 1)
    d = calibration(e, Stated(0*e, 1 + 0*e), [str(i) for i in range(30)]).set_index(['metabolite', 'level'])
    assert (d.high - d.low)['all', 80] == pytest.approx((d.high - d.low)['0', 80], rel=.05)


def test_wilson_is_that_of_scipy():
    for k, n in ((0, 10), (93, 100), (50, 50), (7, 2000)):
        w = binomtest(k, n).proportion_ci(.95, 'wilson')
        assert wilson(k/n, n) == pytest.approx((w.low, w.high), abs=1e-4)


def test_anything_with_cdf_and_quantile():
    truth, mean, sd = (torch.as_tensor(v) for v in claims(n=500))
    class Own:
        def cdf(self, t): return torch.special.ndtr((t - mean)/sd)
        def quantile(self, p): return mean + norm.ppf(p)*sd
    a, b = calibration(truth, Own(), NAMES, [1., 1.]), calibration(truth, Stated(mean, sd), NAMES, [1., 1.])
    assert np.allclose(a.drop(columns='metabolite').astype(float), b.drop(columns='metabolite').astype(float), equal_nan=True)


def test_figures_return_axes():
    plt = pytest.importorskip('matplotlib.pyplot')
    truth, mean, sd = claims(n=60)
    u = Stated(mean, sd).cdf(truth)
    u[:3] = np.nan
    for ax in (plot_reliability(u), plot_reliability({'fit': u, 'other': u[:30]}), plot_ranks(u[:, 0])): assert ax.has_data()
    plt.close('all')
