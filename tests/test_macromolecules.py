"""Macromolecules and lipids: the measured pattern, lipids beside macromolecules of the basis set, a measured signal's own shift and width."""
import math
from pathlib import Path

import pytest
import torch

from deepmrs.core import Acquisition, fid_to_spectrum
from deepmrs.decoder import Decoder, Gaussian, Lorentzian, Phase, Shift, Signals
from deepmrs.fitting import fit
from deepmrs.macromolecules import LIPIDS, PATTERN, PATTERN_AMOUNTS, line_signals, macromolecules, pattern_signals
from deepmrs.model import MEASURED_PATTERN, adapt, make_decoder, proton_unit
from deepmrs.quantify import quantify
from deepmrs.spins import simulate_basis

DATA = Path(__file__).resolve().parents[2]/'shared'/'data'
AMOUNTS = {'NAA': 10., 'NAAG': 1.3, 'Cr': 4.5, 'PCr': 3.5, 'Glu': 9., 'Gln': 2.5, 'Ins': 6., 'GPC': 1., 'PCho': .5, 'Lac': 1., 'GABA': 1.3, 'GSH': 1.4}
SIZE = 6.  # of the pattern, protons · mmol/kg


@pytest.fixture(scope='module')
def basis():
    full = simulate_basis(sequence='press', te1=.011, te2=.019, spectrometer_frequency=123.2, dwell_time=5e-4, points=1024)
    return full.select(list(AMOUNTS))


def pattern(basis):
    "FID [N] of the mean pattern in units of the basis set"
    mean = torch.tensor([m for m, *_ in PATTERN_AMOUNTS.values()])
    return (mean.to(torch.complex64) @ pattern_signals(basis.acquisition))*proton_unit(basis)


def spectra(basis, mm, lipid=0., mm_shift=0., snr=60., n=6, amounts=AMOUNTS, seed=1):
    "FIDs [n, N] with lines some 6 Hz wide; the macromolecules may stand `mm_shift` Hz off"
    acq = basis.acquisition
    lipids = line_signals(acq, LIPIDS)[1:2]*proton_unit(basis)
    decoder = Decoder([Signals(basis.fids, basis.names), Signals(mm[None], ('MM',), 'mm'), Signals(lipids, ('Lip13a',), 'lipids')], acq,
                      [Shift(-20, 20), Lorentzian(0, 50), Gaussian(0, 50), Phase(), Shift(-20, 20, targets=('MM',), name='mm_shift')])
    x = decoder.layout.join({'amplitudes': torch.tensor([[amounts[k] for k in basis.names]]), 'mm': SIZE, 'lipids': lipid, 'shift': 1., 'lorentzian': 8., 'gaussian': 8., 'phase': .1, 'mm_shift': mm_shift})
    clean = decoder(x)
    height = fid_to_spectrum(basis.fids[list(basis.names).index('NAA')][None]*decoder.shared_factor(x)).abs().max()*amounts['NAA']
    g = torch.Generator().manual_seed(seed)
    noise = torch.view_as_complex(torch.randn(n, acq.points, 2, generator=g))
    return clean + noise*height/snr/math.sqrt(acq.points)


def answer(decoder, window, fids, *names):
    "(amounts [n, K], bars [n, K]) of these names"
    f = fit(decoder, fids, window=window)
    at = [decoder.names.index(k) for k in names]
    return f.params[:, at], f.covariance.diagonal(dim1=-2, dim2=-1)[:, at].sqrt()


def with_own(basis):
    "The basis set with a measured macromolecule signal of its own"
    from deepmrs.basis import Basis
    return Basis(torch.cat([basis.fids, pattern(basis)[None]]), [*basis.names, 'MM'], acquisition=basis.acquisition)


@pytest.mark.parametrize('lipid', [0., 4., 12.])
def test_lipid_does_not_become_lactate(basis, lipid):
    "Beside macromolecules of the basis set lipids are added, so that lactate is right within its bars"
    own = with_own(basis)
    fids = spectra(basis, pattern(basis), lipid)
    decoder, used, notes = make_decoder(own, preset='brain-3t')
    assert used.macromolecules == 'lipids' and any('only lipids were added' in n for n in notes)
    lac, bar = answer(decoder, used.window, fids, 'Lac')
    assert ((lac - AMOUNTS['Lac']).abs() < 3*bar).all()
    assert abs(float(lac.mean()) - AMOUNTS['Lac']) < 2*float(bar.mean())
    if lipid < 10: return
    without = adapt('brain-3t', lipids='off')
    decoder, used, _ = make_decoder(own, preset=without)
    wrong, _ = answer(decoder, used.window, fids, 'Lac')
    assert float(wrong.mean()) > 2*AMOUNTS['Lac']  # what the lipids are for


def test_lipids_can_be_left_out(basis):
    "By a choice, by macromolecules none, and where the basis set has its own"
    own = with_own(basis)
    assert not set(LIPIDS) & set(make_decoder(own, preset=adapt('brain-3t', lipids='off'))[0].names)
    assert not set(LIPIDS) & set(make_decoder(own, preset='brain-3t', macromolecules_kind='none')[0].names)
    assert not set(LIPIDS) & set(make_decoder(basis, preset=adapt('brain-3t', lipids='off'))[0].names)
    assert 'Lip13a' in make_decoder(basis, preset='brain-3t')[0].names
    lip = own.replace(names=[*basis.names, 'Lip13'])
    assert make_decoder(lip, preset='brain-3t')[1].macromolecules == 'none'


@pytest.mark.parametrize('where', ['basis', 'measured'])
def test_measured_signal_has_its_own_shift(basis, where):
    "A measured signal 3 Hz off: with a shift of its own it is found, and without one the amounts suffer"
    mm, fids = pattern(basis), spectra(basis, pattern(basis), mm_shift=3., snr=200., n=12)
    given = dict(basis=with_own(basis)) if where == 'basis' else dict(basis=basis, macromolecules_kind='measured', measured=mm)
    decoder, used, _ = make_decoder(preset='brain-3t', **given)
    assert decoder.layout.blocks['own_mm_shift'].labels == ('own_mm_shift MM',) and 'own_mm_lorentzian' in decoder.layout
    f = fit(decoder, fids, window=used.window)
    moved = f.params[:, decoder.layout.slices['own_mm_shift']]
    assert 1.8 < float(moved.mean()) < 3.5
    held, used_held, _ = make_decoder(preset=adapt('brain-3t', own_mm_shift='off', own_mm_lorentzian='off'), **given)
    strict = fit(held, fids, window=used_held.window)
    truth = torch.tensor([AMOUNTS[k] for k in basis.names], dtype=torch.float64)
    error = lambda g: float((g.params[:, :len(truth)] - truth).abs().mean())
    assert error(f) < 0.8*error(strict)


def test_measured_signal_through_quantify(basis):
    "`measured` of quantify gets lipids and a shift of its own, and its amount is right"
    from deepmrs.basis import Basis
    from deepmrs.core import Spectra
    mm = Basis(pattern(basis)[None], ['MM'], acquisition=basis.acquisition)
    s = Spectra(spectra(basis, pattern(basis), lipid=3., n=2), acquisition=basis.acquisition)
    r = quantify(s, basis, measured=mm, preset=adapt('brain-3t', remove_water='off'))
    assert r.all_names[len(basis.names):] == ['MM', *LIPIDS]
    at = r.all_names.index('MM')
    bar = r.fit.covariance[:, at, at].sqrt()
    assert ((r.fit.params[:, at] - SIZE).abs() < 3*bar).all() and (bar < SIZE/3).all()


def test_pattern_comes_out_as_a_pattern(basis):
    "Of spectra with the mean pattern MM20 and MM09 are the largest of their neighbours, and all amounts are right within their bars"
    decoder, used, _ = make_decoder(basis, preset='brain-3t')
    assert used.macromolecules == 'pattern' and decoder.names[len(basis.names)] == 'MM09'
    f = fit(decoder, spectra(basis, pattern(basis), snr=60.), window=used.window)
    amount = dict(zip(decoder.names, f.params.mean(0)))
    assert amount['MM20'] > amount['MM17'] and amount['MM09'] > amount['MM14'] > amount['MM12']
    assert all(abs(float(amount[n])/SIZE/m - 1) < 0.25 for n, (m, *_) in PATTERN_AMOUNTS.items() if n < 'MM26')
    sd = f.covariance.diagonal(dim1=-2, dim2=-1).sqrt()[:, :len(basis.names)]
    truth = torch.tensor([AMOUNTS[k] for k in basis.names], dtype=torch.float64)
    assert ((f.params[:, :len(truth)] - truth).abs() < 4*sd).all()


@pytest.mark.parametrize('mhz', [123.2, 297.2, 400.2])
def test_pattern_at_every_field(mhz):
    "0.9 and 2.0 ppm stand tallest, as in every measured signal; the lines have unit area"
    acq = Acquisition(1.25e-4, mhz, 4096)
    s, = macromolecules('pattern', acq)
    assert list(s.names[:len(PATTERN)]) == list(PATTERN) and torch.allclose(s.fids[:len(PATTERN), 0].real, torch.ones(len(PATTERN)), atol=1e-5)
    mean = torch.tensor([m for m, *_ in PATTERN_AMOUNTS.values()])
    y = fid_to_spectrum(s.fids[:len(PATTERN)]).real.T @ mean
    top = lambda ppm: float(y[(acq.ppm_axis() - ppm).abs() < .05].max())
    assert min(top(.9), top(2.03)) > max(top(1.2), top(1.39), top(1.65), top(2.97), top(3.2), top(3.9))


def test_pattern_prior_counts_ratios():
    "Any amount of the mean costs nothing; one line that stands alone a lot; the rows have the covariance they state"
    from deepmrs.model import SoftRows
    names = MEASURED_PATTERN.names
    layout = Decoder([Signals(torch.ones(len(names), 32, dtype=torch.complex64), names)], Acquisition(1e-3, 123.2, 32), []).layout
    rows = SoftRows([MEASURED_PATTERN], layout)
    mean = torch.tensor(MEASURED_PATTERN.mean, dtype=torch.float64)
    cost = lambda a: float((((rows.A @ a) / rows.sd(a[None])[0])**2).sum())
    assert cost(mean) < 1e-12 and cost(30*mean) < 1e-12
    alone = torch.zeros_like(mean)
    alone[names.index('MM14')] = mean.sum()
    assert cost(alone) > 1000
    draws = mean + torch.randn(4000, len(names), dtype=torch.float64, generator=torch.Generator().manual_seed(0)) @ torch.linalg.cholesky(MEASURED_PATTERN.covariance()).T
    costs = torch.stack([torch.tensor(cost(a)) for a in draws[:500]])
    assert abs(float(costs.median()) - (len(names) - 1)) < 2.5


def test_real_voxel_is_a_brain():
    "On a measured voxel MM20 and MM09 are not dwarfed by MM14"
    files = DATA/'invivo'
    if not files.is_dir(): pytest.skip('the measured voxel is not here')
    from deepmrs.io import read_basis, read_spectra
    r = quantify(read_spectra(files/'sub-01_press_act.nii.gz'), read_basis(files/'3T_PRESS_Philips_35ms_noMM.BASIS'), preset='brain-3t')
    amount = dict(zip(r.all_names, r.fit.params[0, :len(r.all_names)].tolist()))
    assert amount['MM20'] > 1.3*amount['MM14'] and amount['MM09'] > 0.8*amount['MM14'] and amount['MM09'] > amount['MM12']
