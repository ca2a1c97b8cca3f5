"""Presets and what they know softly: the literature's ratios, patients, coverage, models of earlier versions."""
import math

import pytest
import torch

from deepmrs.core import InputError
from deepmrs.fitting import fit
from deepmrs.model import HEALTHY, MM_PRIORS, PRESETS, PatternPrior, RatioPrior, adapt, make_decoder
from deepmrs.simulate import Pattern, Simulator, brain_priors, prior_from_spec
from deepmrs.spins import simulate_basis

META = {'GABA': (0.145, 0.074), 'GSH': (0.281, 0.149), 'Gln': (0.278, 0.053), 'Asp': (0.353, 0.133), 'Asc': (0.495, 0.066)}  # to tCr, mean ± sd between studies
TYPICAL = {'NAA': 10., 'NAAG': 1.3, 'Cr': 4.5, 'PCr': 3.5, 'Glu': 9., 'Gln': 2.5, 'Ins': 6., 'GPC': 1., 'PCho': .5, 'GABA': 1.3, 'GSH': 1.4, 'Tau': 1.3, 'Asp': 2., 'Lac': .7, 'Ala': .4, 'Glc': 1.,
           'PE': 1.3, 'Asc': 1., 'sIns': .3}


@pytest.fixture(scope='module')
def basis():
    full = simulate_basis(sequence='press', te1=.011, te2=.019, spectrometer_frequency=123.2, dwell_time=5e-4, points=1024)
    return full.select([n for n in full.names if n in TYPICAL])


def simulated(decoder, basis, n, snr, seed=0, **amounts):
    "(FIDs, true parameters) from the preset's own soft priors, typical amounts ± 20 %"
    g = torch.Generator().manual_seed(seed)
    sim = Simulator(decoder, brain_priors(decoder))
    x = sim.sample(n, g)
    mean = torch.tensor([(TYPICAL | amounts)[k] for k in basis.names])
    x[:, :len(mean)] = mean*(1 + .2*torch.randn(n, len(mean), generator=g)).clamp_min(.2)
    for k, v in amounts.items(): x[:, list(basis.names).index(k)] = v
    acq, lay = decoder.acquisition, decoder.layout
    x[:, lay.slices['lorentzian']], x[:, lay.slices['gaussian']] = 8., 8.
    # a smooth baseline of the stiffness that the model expects, small
    x[:, lay.slices['baseline']] = 0
    height = 10*3*proton(basis)/(math.pi*6)/acq.dwell_time
    sd = height/snr/math.sqrt(acq.points)
    noise = torch.view_as_complex(torch.randn(n, acq.points, 2, generator=g))*sd
    with torch.no_grad(): return decoder(x) + noise, x


def proton(basis):
    from deepmrs.model import proton_unit
    return proton_unit(basis)


@pytest.mark.parametrize('name', list(META))
@pytest.mark.parametrize('preset', ['brain-3t', 'brain-7t'])
def test_ratios_of_the_literature_are_likely(preset, name):
    "The meta-analysis lies within one sd of each soft ratio, which is at least as wide as the spread of healthy studies"
    q = next(q for q in PRESETS[preset].priors if getattr(q, 'name', '') == name)
    mean, spread = META[name]
    assert set(q.reference) == {('Cr', 1.), ('PCr', 1.)}
    assert abs(q.mean - mean) < q.sd and q.sd > 2*spread and q.sd >= 1.5*q.mean - 1e-9
    assert HEALTHY[name][0] == q.mean


@pytest.mark.parametrize('times', [0.5, 1, 2, 4])
def test_a_patient_is_not_pulled_to_the_healthy(basis, times):
    "GABA of half to four times the healthy at SNR 50: within the bar on average, and a doubled one comes out as more than one and a half"
    decoder, used, _ = make_decoder(basis, preset='brain-3t')
    true = times*TYPICAL['GABA']
    fids, _ = simulated(decoder, basis, 32, 50., seed=int(10*times), GABA=true)
    f = fit(decoder, fids, window=used.window)
    at = list(basis.names).index('GABA')
    estimate, bar = f.params[:, at], f.covariance[:, at, at].sqrt()
    assert abs(float(estimate.mean()) - true) < float(bar.mean())
    if times == 2: assert float(estimate.mean()) > 1.5*TYPICAL['GABA']


def test_error_bars_hold_in_distribution(basis):
    "Parameters drawn from the soft priors of the preset: 95 % bars cover 93.5 to 96.5 % of the larger amounts"
    decoder, used, _ = make_decoder(basis, preset='brain-3t')
    fids, x = simulated(decoder, basis, 200, 60.)
    f = fit(decoder, fids, window=used.window)
    z = (f.params - x)/f.covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    K = decoder.linear
    covered = (z[:, :K].abs() < 1.96).double()
    assert f.converged.double().mean() > .99
    assert 0.935 <= float(covered[:, :len(basis.names)].mean()) <= 0.975  # a bound at 0 makes bars of absent ones too wide
    strong = [decoder.names.index(n) for n in ('NAA', 'Cr', 'Glu', 'Ins', 'MM09', 'MM20')]
    assert 0.92 <= float(covered[:, strong].mean()) <= 0.98


def test_draws_are_those_of_the_soft_pattern(basis):
    "What is simulated has the ratios that the model expects, and its JSON form the same moments"
    decoder, used, _ = make_decoder(basis, preset='brain-3t')
    d = brain_priors(decoder)['macromolecules']
    soft = next(q for q in used.priors if isinstance(q, PatternPrior))
    K = len(decoder.layout.blocks['macromolecules'].labels)
    x = d.sample(20000, K, torch.Generator().manual_seed(0))[:, :len(soft.names)].double()
    share = x/x.sum(-1, keepdim=True)*sum(soft.mean)
    assert isinstance(d, Pattern) and torch.allclose(share.mean(0), torch.tensor(soft.mean, dtype=torch.float64), atol=.06)
    again = prior_from_spec(d.spec())
    assert torch.allclose(again.mean, d.mean) and torch.allclose(again.sd, d.sd) and (x >= 0).all()


@pytest.mark.parametrize('preset', ['brain-3t', 'brain-7t', 'rodent-9.4t'])
def test_presets_have_a_new_version(preset):
    p = PRESETS[preset]
    assert p.version == '3' and p.macromolecules == 'pattern' and p.lipids and set(MM_PRIORS) <= set(p.priors)
    assert adapt(preset, own_mm_shift='off').modulations.count('own_mm_shift') == 0
    assert not any(isinstance(q, (RatioPrior, PatternPrior)) for q in adapt(preset, ratios='off').priors)


def test_version_2_of_the_shipped_model_still_loads():
    "A model keeps the preset that it was trained with"
    from deepmrs.training import load_model
    model = load_model('default')
    if model.preset.version == '2': assert model.preset.macromolecules == 'brain' and 'own_mm_shift' not in model.layout
    else: assert model.preset.macromolecules == 'pattern' and 'own_mm_shift' in model.layout


def test_saved_model_of_the_new_preset(basis, tmp_path):
    "Card and back: pattern prior, own shift and lipids are there again, bit for bit"
    from deepmrs.training import load_model, train
    model = train(basis, preset='brain-3t', priors='brain', noise_sd=1., encoder='mlp', encoder_options={'widths': [8]}, points=512, batch_size=4, spectra_per_epoch=8, max_epochs=1, out=tmp_path/'m', validation=4, progress=False)
    again = load_model(tmp_path/'m')
    assert again.preset.priors == model.preset.priors and again.layout.labels == model.layout.labels
    assert torch.equal(again.decoder.fids, model.decoder.fids)


@pytest.mark.parametrize('spec', [
    ['low', 1],
    [[0, [1]], 1],
    [0, float('nan')],
    {'kind': []},
    {'kind': 'normal', 'mean': 0, 'sd': 'wide'},
    {'kind': 'normal', 'mean': 0, 'sd': 1, 'at_least': 'nothing'},
    {'kind': 'correlated', 'factor': 1},
    {'kind': 'pattern', 'mean': [1, 2], 'factor': [[1], [2]], 'size': [0, 1, 2]},
    {'kind': 'pattern', 'mean': [1, 2], 'factor': [[1], [2], [3]], 'size': [0, 1]},
])
def test_a_prior_of_something_else_is_refused(spec):
    with pytest.raises(InputError, match='prior'): prior_from_spec(spec)


def test_priors_that_are_right_are_as_they_were():
    assert prior_from_spec([1, 3]).spec() == {'kind': 'uniform', 'low': 1., 'high': 3.}
    folded = {'kind': 'normal', 'mean': [1., 2.], 'sd': [.5, .25], 'at_least': 0}
    assert prior_from_spec(folded).spec() == folded
