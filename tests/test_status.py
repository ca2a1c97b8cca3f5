"A status for each fault, error bars that know of misfit, and the points that were measured."
import json
import math
from pathlib import Path

import nibabel as nib
import pytest
import torch
from typer.testing import CliRunner

from deepmrs.core import Spectra
from deepmrs.io import read_basis, read_spectra, write_basis, write_spectra
from deepmrs.model import adapt, make_decoder
from deepmrs.preprocess import crop_zeros, measured_points, noise_sd, snr
from deepmrs.quantify import load_result, quantify
from deepmrs.report import STATUS
from deepmrs.simulate import Simulator, brain_priors
from deepmrs.spins import simulate_basis
from deepmrs.trust import sd_scale

DATA = Path(__file__).parents[2]/'shared/data'
DRY = adapt('brain-3t', remove_water='off')  # no water in these data


@pytest.fixture(scope='module')
def basis():
    everything = simulate_basis(te1=.011, te2=.019)
    return everything.select([n for n in everything.names if n in ('NAA', 'NAAG', 'Cr', 'PCr', 'GPC', 'PCho', 'Glu', 'Gln', 'Ins', 'GABA')])


def brain(basis, n=3, seed=0, noise=2.):
    "`Spectra` that the preset describes, of a brain's amounts, and those amounts [n, M]"
    decoder, _, _ = make_decoder(basis, preset=DRY)
    priors = {k: v for k, v in brain_priors(decoder).items() if k not in ('amplitudes', 'macromolecules')}
    typical = {'NAA': 10., 'NAAG': 1.3, 'Cr': 4.5, 'PCr': 3.5, 'Glu': 9., 'Gln': 2.5, 'Ins': 6., 'GPC': 1., 'PCho': .5, 'GABA': 1.3}
    simulator = Simulator(decoder, priors, noise_sd=noise)
    g = torch.Generator().manual_seed(seed)
    params = simulator.sample(n, g)
    params[:, :len(basis.names)] = torch.tensor([typical[k] for k in basis.names])
    mm = decoder.layout.slices['macromolecules']
    params[:, mm] = 1.
    with torch.no_grad(): clean = decoder(params)
    fids = clean + noise*torch.view_as_complex(torch.randn(*clean.shape, 2, generator=g))
    return Spectra(fids, acquisition=basis.acquisition), params[:, :len(basis.names)].double()


def run(spectra, basis, **kw): return quantify(spectra, basis, preset=DRY, posterior=False, **kw)


def totals(result, truth, names=('tNAA', 'tCr', 'tCho')):
    "(estimate, sd, truth) [B, 3] of the totals"
    labels, value, sd, _, W = result.amounts()
    rows = [labels.index(n) for n in names]
    M = truth.shape[1]
    return value[:, rows], sd[:, rows], truth @ W[rows][:, :M].T


def right(result, truth):
    value, sd, true = totals(result, truth)
    assert ((value - true).abs() < 4*sd + .1*true).all(), (value, sd, true)


def test_good_spectra_are_ok(basis):
    s, truth = brain(basis, 8)
    r = run(s, basis)
    assert r.reasons == ['ok']*8
    right(r, truth)
    q = r.quality()
    assert q.misfit.between(.85, 1.15).all() and (q.unexplained < .1).all() and q.sd_scale.between(1, 1.5).all() and (q.residual_correlation.abs() < .25).all()


@pytest.mark.parametrize('lost', ['zero', 'copy'])
def test_one_part_lost(basis, lost):
    s, _ = brain(basis)
    fids = s.fids.clone()
    fids[1] = fids[1].real*(1 if lost == 'zero' else 1 + 1j)
    r = run(s.replace(fids), basis)
    assert r.reasons == ['ok', 'no_imaginary', 'ok']


@pytest.mark.parametrize('points', [5, 12, 68])
def test_group_delay_is_cut_off(basis, points, tmp_path):
    s, truth = brain(basis)
    before = 1e-3*torch.randn(3, points, dtype=torch.complex64, generator=torch.Generator().manual_seed(1))
    late = s.replace(torch.cat([before, s.fids], -1)[:, :s.acquisition.points])
    r = run(late, basis)
    assert r.reasons == ['ok']*3 and any(f'began {points} points' in n for n in r.notes)
    right(r, truth)
    r.save(tmp_path)
    fitted = read_spectra(tmp_path/'fit.nii.gz', dynamics='separate').fids
    assert fitted.shape == s.fids.shape and not fitted[:, :points].any() and (fitted[:, points] != 0).all()


def test_lost_points_have_a_status(basis):
    s, _ = brain(basis)
    fids = torch.cat([s.fids[:, 8:], s.fids[:, -8:]], -1)
    assert set(run(s.replace(fids), basis).reasons) == {'points_lost'}


def test_lipids_twenty_times_the_metabolites(basis):
    s, _ = brain(basis)
    acq = s.acquisition
    t = acq.time_axis()
    height = s.spectrum()[:, (acq.ppm_axis() - 2.01).abs() < .2].abs().amax(-1, keepdim=True)
    lipid = torch.exp((2j*math.pi*acq.to_hz(1.3) - 60)*t) + .4*torch.exp((2j*math.pi*acq.to_hz(.9) - 80)*t)
    r = run(s.replace((s.fids + 20*height*lipid/torch.fft.fft(lipid).abs().max()).to(torch.complex64)), basis)
    assert 'ok' not in r.reasons


def test_far_off_is_found_or_told(basis):
    s, truth = brain(basis)
    moved = lambda ppm: s.replace(s.fids*torch.exp(2j*math.pi*ppm*s.acquisition.spectrometer_frequency*s.acquisition.time_axis()))
    r = run(moved(.35), basis)
    assert r.reasons == ['ok']*3
    right(r, truth)
    assert 'ok' not in run(moved(.9), basis).reasons


def test_each_spectrum_has_its_own_orientation(basis):
    s, truth = brain(basis, 9)
    fids = s.fids.conj().resolve_conj().clone()
    fids[[0, 4, 8]] = s.fids[[0, 4, 8]]
    r, plain = run(s.replace(fids), basis), run(s, basis)
    assert r.reasons == ['ok']*9 and any('6 of 9 spectra were conjugated' in n for n in r.notes)
    assert ((r.amplitudes - plain.amplitudes).abs() < .1*plain.sd).all()


@pytest.mark.parametrize('times', [2, 4])
def test_zero_filling_changes_nothing(basis, times, tmp_path):
    s, truth = brain(basis, 4)
    filled = s.replace(torch.nn.functional.pad(s.fids, (0, (times - 1)*s.acquisition.points)))
    tiny = filled.replace(filled.fids + 1e-9*s.fids.abs().max()*torch.randn(filled.fids.shape, generator=torch.Generator().manual_seed(0)))
    plain = run(s, basis)
    for other in (filled, tiny):
        r = run(other, basis)
        assert ((r.amplitudes - plain.amplitudes).abs() < .05*plain.sd).all() and torch.allclose(r.sd, plain.sd, rtol=.02)
        assert torch.allclose(torch.tensor(r.quality().snr.to_numpy()), torch.tensor(plain.quality().snr.to_numpy()), rtol=.01)
        assert any('zero filling' in n for n in r.notes)
    r.save(tmp_path)
    assert times*s.acquisition.points in nib.load(tmp_path/'fit.nii.gz').shape
    assert torch.equal(load_result(tmp_path).sd, r.sd)


def test_errors_of_zero_filled_and_weighted_data_hold(basis):
    "Two error bars hold 95 %: of the totals of 40 spectra, filled to four times their length after an exponential weighting"
    s, truth = brain(basis, 40, seed=2)
    weighted = s.fids*torch.exp(-3*math.pi*s.acquisition.time_axis())
    for fids in (s.fids, weighted):
        r = run(s.replace(torch.nn.functional.pad(fids, (0, 3*s.acquisition.points))), basis)
        value, sd, true = totals(r, truth)
        inside = ((value - true).abs() < 2*sd).double().mean()
        assert set(r.reasons) == {'ok'} and inside > .88, inside


def test_noise_where_the_bandwidth_is_narrow(basis):
    s, _ = brain(basis, 6)
    acq = s.acquisition
    keep = round(9.7*acq.spectrometer_frequency*acq.points*acq.dwell_time/2)*2
    middle = slice((acq.points - keep)//2, (acq.points + keep)//2)
    cut = torch.fft.ifft(torch.fft.ifftshift(torch.fft.fftshift(torch.fft.fft(s.fids), dim=-1)[:, middle], dim=-1))*keep/acq.points
    narrow = Spectra(cut, acquisition=acq.replace(points=keep, dwell_time=acq.dwell_time*acq.points/keep))
    assert abs(float(noise_sd(narrow).mean())/(2*math.sqrt(keep/acq.points)) - 1) < .1
    assert abs(run(narrow, basis).quality().misfit.median() - 1) < .12


def test_noise_that_cannot_be_read_is_said(basis):
    s, _ = brain(basis, 2, noise=0.)
    r = run(s, basis)
    assert r.quality().misfit.isna().all() and (r.sd_scale == 1).all() and any("can't be read" in n for n in r.notes)


def test_sd_scale_by_hand():
    one = torch.ones(4, dtype=torch.float64)
    scale = sd_scale(torch.tensor([1., .9, 2., math.nan], dtype=torch.float64), -.1*one, 10., 0.)
    assert torch.allclose(scale, torch.tensor([1., 1., math.sqrt(31/4), 1.], dtype=torch.float64))
    more = sd_scale(2*one, torch.tensor([-.5, -.1, .1, .9], dtype=torch.float64), 10., 0.)
    assert more[0] == more[1] < more[2] < more[3] and abs(float(more[3]) - math.sqrt(61/4)) < 1e-9  # (1 + 1/3)/(1 − 1/3) = 2


def test_a_missing_line_has_a_status(basis):
    s, _ = brain(basis)
    without = basis.select([n for n in basis.names if n not in ('Cr', 'PCr')])
    moved = type(basis)(torch.cat([without.fids, basis.fids[[basis.index('Cr')]]*torch.exp(2j*math.pi*40*basis.acquisition.time_axis())]), [*without.names, 'Cr'], acquisition=basis.acquisition)
    assert 'ok' not in run(s, moved).reasons


def test_statuses_have_words_and_reach_the_files(basis, tmp_path):
    from deepmrs.report import report
    s, _ = brain(basis, 4)
    fids = s.fids.clone()
    fids[2] = fids[2].real + 0j
    grid = Spectra(fids.reshape(2, 2, 1, -1), acquisition=s.acquisition)
    r = run(grid, basis)
    r.save(tmp_path)
    page = report(r, tmp_path).read_text()
    assert r.reasons[2] == 'no_imaginary' and 'no complex number' in page
    assert nib.load(tmp_path/'qc/ok.nii.gz').get_fdata().ravel().tolist() == [1, 1, 0, 1]
    assert set(r.reasons) <= set(STATUS) and 'sd_scale' in (tmp_path/'quality.csv').read_text()


def test_exit_status_says_that_nothing_is_usable(basis, tmp_path):
    from deepmrs.cli import app
    s, _ = brain(basis, 1)
    write_spectra(s.replace(s.fids.real + 0j), tmp_path/'bad.npz')
    write_basis(basis, tmp_path/'basis.npz')
    out = CliRunner().invoke(app, ['quantify', str(tmp_path/'bad.npz'), '--basis', str(tmp_path/'basis.npz'), '--out', str(tmp_path/'out'), '--choose', 'remove_water=off'])
    assert out.exit_code == 1 and 'no_imaginary' in out.output


@pytest.mark.parametrize('name', ['invivo/sub-01_press_act.nii.gz'])
def test_the_real_voxel_is_ok(name):
    if not (DATA/name).exists(): pytest.skip('the real voxel is not at hand')
    r = quantify(read_spectra(DATA/name), read_basis(DATA/'invivo/3T_PRESS_Philips_35ms_noMM.BASIS'))
    assert r.reasons == ['ok'] and r.quality().sd_scale[0] > 1.5  # its residual is structured
