"Preprocessing against another HLSVD, on odd batches, on extreme scales and on a real voxel."
import json, math, sys, types
from pathlib import Path

import numpy as np
import pytest
import torch

from deepmrs.basis import Basis
from deepmrs.core import Acquisition, InputError, Spectra, fid_to_spectrum
from deepmrs.preprocess import (align, correct_eddy_currents, linewidth, noise_sd, normalise, phase, quality_filter, remove_water, snr)

DATA = Path(__file__).parents[2]/'shared/data/invivo'
ACQ = Acquisition(5e-4, 127.75, 2048)
T = ACQ.time_axis(dtype=torch.float64)
TOY = {'NAA': [(2.008, 3)], 'Cr': [(3.027, 3), (3.913, 2)], 'GPC': [(3.212, 9)], 'Ins': [(3.52, 2), (3.61, 2)]}


def line(ppm, a, d, acq=ACQ):
    return a*torch.exp((2j*math.pi*acq.to_hz(ppm) - d)*acq.time_axis(dtype=torch.float64))


def toy_basis(acq=ACQ):
    return Basis(torch.stack([sum(line(p, h, 2. if acq.points > 1000 else 8., acq) for p, h in ls) for ls in TOY.values()]), list(TOY), acquisition=acq)


def brain(acq=ACQ, d=12.):
    one = sum(a*line(p, h, d, acq) for a, ls in zip((1.2, .8, .15, .4), TOY.values()) for p, h in ls)
    return one + line(2.08, 2., 70., acq) + line(.9, 2., 80., acq) + line(1.3, 1., 90., acq)


def noise(b, sd=.05, seed=0, n=2048):
    return sd*math.sqrt(2)*torch.randn(b, n, dtype=torch.complex128, generator=torch.Generator().manual_seed(seed))


WATER = line(4.65, 180., 15.) + line(4.70, 60., 25.) - line(4.60, 30., 18.)


def real(name):
    nibabel = pytest.importorskip('nibabel')
    if not (DATA/name).exists(): pytest.skip('the real voxel is not at hand')
    image = nibabel.load(DATA/name)
    head = json.loads(image.header.extensions[0].get_content())
    return Spectra(np.conj(np.asarray(image.dataobj))[0, 0, 0], float(image.header['pixdim'][4]), head['SpectrometerFrequency'][0])


def other_hlsvd(fid, acq, band, k):
    "Water [N] found by the library hlsvdpropy, which imports pkg_resources only for its version"
    if 'pkg_resources' not in sys.modules:
        try: import pkg_resources  # noqa: F401
        except ImportError:
            sys.modules['pkg_resources'] = types.SimpleNamespace(get_distribution=lambda n: types.SimpleNamespace(version='0'))
            try: lib = pytest.importorskip('hlsvdpropy')
            finally: del sys.modules['pkg_resources']
    lib = pytest.importorskip('hlsvdpropy')
    _, _, f, d, a, p, *_ = lib.hlsvdpro(np.asarray(fid).astype(complex), k)
    ppm = acq.centre_ppm + f/acq.dwell_time/acq.spectrometer_frequency
    inside = (ppm > band[0]) & (ppm < band[1])
    n = np.arange(len(fid))[:, None]
    return (np.exp(n*(d + 2j*np.pi*f))*(a*np.exp(1j*p)))[:, inside].sum(1)


def part(x, lo, hi, acq=ACQ):
    ppm = acq.ppm_axis()
    return x[..., (ppm > lo) & (ppm < hi)]


# --- water

def test_water_agrees_with_the_other_hlsvd():
    fid = brain() + WATER + noise(1)[0]
    ours = remove_water(Spectra(fid, acquisition=ACQ), components=24)
    theirs = fid.numpy() - other_hlsvd(fid, ACQ, (4.2, 5.1), 24)
    d = fid_to_spectrum(ours.fids[0] - torch.from_numpy(theirs)).abs()
    sd = .05*math.sqrt(2048)
    assert part(d, .2, 4.1).max() < sd and part(d, 4.3, 5.).max() < 3*sd
    assert part(fid_to_spectrum(WATER).abs(), 4.3, 5.).max() > 1e3*sd


def test_water_agrees_with_the_other_hlsvd_on_the_real_voxel():
    voxel = real('sub-01_press_act.nii.gz')
    acq, fid = voxel.acquisition, voxel.fids[0]
    ours = remove_water(voxel, components=24).fids[0]
    theirs = torch.from_numpy(fid.numpy() - other_hlsvd(fid, acq, (4.2, 5.1), 24))
    S = {k: fid_to_spectrum(x).abs() for k, x in dict(raw=fid, ours=ours, theirs=theirs).items()}
    water = {k: float(part(s, 4.3, 5., acq).max()) for k, s in S.items()}
    assert water['ours'] < .02*water['raw'] and water['ours'] < 1.5*water['theirs']
    naa = float(part(S['theirs'], 1.9, 2.1, acq).max())
    assert float(part(fid_to_spectrum(ours - theirs).abs(), .5, 3.4, acq).max()) < .1*naa  # two models of a foot of water


def test_water_in_a_grid_with_empty_voxels_and_odd_lengths():
    fids = torch.zeros(2, 3, 1, 2048, dtype=torch.complex128)
    fids[0, 1], fids[1, 2] = brain() + WATER, 1e9*(brain() + WATER)
    grid = Spectra(fids, acquisition=ACQ, affine=np.eye(4))
    dry = remove_water(grid)
    assert dry.shape == (2, 3, 1) and dry.affine is grid.affine and len(dry.notes) == 1
    empty = (fids.reshape(-1, 2048) == 0).all(-1)
    assert (dry.fids[empty] == 0).all() and torch.isfinite(torch.view_as_real(dry.fids)).all()
    assert torch.allclose(dry.fids[5]/1e9, dry.fids[1], atol=1e-3)
    for n in (2047, 301, 64, 20):
        out = remove_water(Spectra((brain() + WATER + noise(1)[0])[:n], acquisition=ACQ))
        assert out.fids.shape == (1, n) and out.fids.norm() < (brain() + WATER)[:n].norm()
    with pytest.raises(InputError): remove_water(Spectra(torch.ones(10), acquisition=ACQ))


def test_water_hardly_touches_noise():
    x = Spectra(noise(3), acquisition=ACQ)
    assert (remove_water(x).fids - x.fids).norm() < .3*x.fids.norm()


# --- eddy currents

@pytest.mark.parametrize('n,dwell', [(2048, 5e-4), (700, 5e-4), (4096, 5e-4), (1024, 1e-3), (5000, 2e-4)])
def test_eddy_currents_with_references_of_any_sampling(n, dwell):
    shape = lambda t: 1.5*torch.exp(-t/.015) - .6*torch.exp(-t/.06) + 2*math.pi*9*t + .7
    acq = ACQ.replace(points=n, dwell_time=dwell)
    t = acq.time_axis(dtype=torch.float64)
    ref = Spectra(4000*torch.exp(-18*t + 1j*shape(t)) + noise(1, .05, 1, n)[0], acquisition=acq)
    fixed = correct_eddy_currents(Spectra(brain()*torch.exp(1j*shape(T)), acquisition=ACQ), ref)
    err = (fixed.fids[0] - brain()).norm()/brain().norm()
    assert err < .02, err


def test_a_noisy_reference_adds_no_noise():
    "Late in the FID the plain phase of the reference is random; the weighted one is not"
    ref = Spectra(20*torch.exp(-20*T) + noise(1, .5, 2)[0], acquisition=ACQ)
    fid = line(2.008, 1., 2.)
    ours = correct_eddy_currents(Spectra(fid, acquisition=ACQ), ref).fids[0]
    plain = fid*torch.exp(-1j*torch.angle(ref.fids[0]))
    assert (ours - fid).norm() < .35*(plain - fid).norm()


def test_eddy_currents_per_voxel_and_refusals():
    data, ref = Spectra(brain().expand(3, -1), acquisition=ACQ), torch.stack([100*torch.exp(-20*T + 1j*p) for p in (0., 1., 2.)])
    ref[1] = 0
    fixed = correct_eddy_currents(data, Spectra(ref, acquisition=ACQ))
    assert torch.allclose(fixed.fids[1], data.fids[1]) and abs(float(torch.angle((fixed.fids[2]*data.fids[2].conj()).sum())) + 2) < 1e-3
    for bad in (Spectra(ref[:2], acquisition=ACQ), Spectra(0*ref, acquisition=ACQ), Spectra(ref, acquisition=ACQ.replace(nucleus='31P')),
                Spectra(ref, acquisition=ACQ.replace(spectrometer_frequency=123.))):
        with pytest.raises(InputError): correct_eddy_currents(data, bad)


# --- alignment, phase

@pytest.mark.parametrize('sd', [.05, .5, 2.])
def test_alignment_of_many_noisy_spectra_with_water(sd):
    hz = torch.linspace(-28, 28, 600, dtype=torch.float64)
    fids = (brain() + .3*WATER)*torch.exp(2j*math.pi*hz[:, None]*T + 1j*hz[:, None]) + noise(600, sd)
    out, shift = align(Spectra(fids, acquisition=ACQ), toy_basis())
    err = (shift - hz).abs()
    assert err.median() < .6 and err.quantile(.99) < 2, (err.median(), err.max())
    assert len(out.notes) == 1 and len(out) == 600
    assert align(out, toy_basis())[1].abs().median() < .01  # moved to where they belong


def test_conjugated_data_are_turned_and_noise_is_not():
    clean = brain() + .3*WATER
    for seed in range(5):
        fids = clean*np.exp(.8j*seed) + noise(3, 1., seed)
        assert not any('conj' in n for n in align(Spectra(fids, acquisition=ACQ), toy_basis())[0].notes)
        turned, shift = align(Spectra(fids.conj(), acquisition=ACQ), toy_basis())
        assert 'The data were conjugated; they have been turned.' in turned.notes and shift.abs().max() < 2
        kept = align(Spectra(fids.conj(), acquisition=ACQ), toy_basis(), turn=False)[0]
        assert not any('conjugated' in n for n in kept.notes)
    hiss = [align(Spectra(noise(1, seed=s), acquisition=ACQ), toy_basis())[0].notes for s in range(30)]
    assert not any('conj' in n for notes in hiss for n in notes)
    out, shift = align(Spectra(noise(40), acquisition=ACQ), toy_basis())
    assert not any('conj' in n for n in out.notes) and (shift == 0).float().mean() > .9 and 'no clear lines' in out.notes[-1]


def test_alignment_with_another_basis_sampling_and_other_metabolites():
    data = Spectra(brain()*torch.exp(2j*math.pi*5*T), acquisition=ACQ)
    fine = toy_basis(Acquisition(2.5e-4, 127.75, 8192))
    assert abs(float(align(data, fine)[1]) - 5) < .6
    short = toy_basis(Acquisition(2.5e-4, 127.75, 1200))  # 0.3 s, where its lines still ring
    assert abs(float(align(data, short)[1]) - 5) < .6
    few = Basis(toy_basis().fids[3:], ['Ins'], acquisition=ACQ)
    assert torch.isfinite(align(data, few)[1]).all()
    with pytest.raises(InputError): align(Spectra(brain()[:512], acquisition=ACQ.replace(dwell_time=4e-3)), toy_basis())


@pytest.mark.parametrize('size', [1e-9, 1., 1e9])
def test_scale_changes_nothing(size):
    fids = torch.stack([brain(), brain(d=20.)*np.exp(1j)]) + noise(2)
    a, b = Spectra(fids, acquisition=ACQ), Spectra(fids*size, acquisition=ACQ)
    assert torch.allclose(align(a, toy_basis())[1], align(b, toy_basis())[1], atol=1e-3)
    assert torch.allclose(phase(a, toy_basis())[1], phase(b, toy_basis())[1], atol=1e-4)
    assert torch.allclose(snr(a), snr(b), rtol=1e-4) and torch.allclose(linewidth(a), linewidth(b), rtol=1e-4)
    assert torch.allclose(noise_sd(a)*size, noise_sd(b), rtol=1e-4) and torch.allclose(normalise(a)[0].fids, normalise(b)[0].fids, rtol=1e-4)
    assert torch.allclose(remove_water(a).fids*size, remove_water(b).fids, rtol=1e-3, atol=1e-3*size)
    assert torch.allclose(correct_eddy_currents(a, a).fids*size, correct_eddy_currents(b, b).fids, rtol=1e-3, atol=1e-3*size)
    assert quality_filter(a)[1] == quality_filter(b)[1] == ['ok', 'ok']


def test_zero_data_are_refused_and_noise_is_survived():
    zero, hiss = Spectra(torch.zeros(2, 2048), acquisition=ACQ), Spectra(noise(2), acquisition=ACQ)
    for step in (remove_water, normalise, lambda s: align(s, toy_basis()), lambda s: phase(s, toy_basis()), lambda s: correct_eddy_currents(hiss, s)):
        with pytest.raises(InputError): step(zero)
    for step in (remove_water, normalise, lambda s: align(s, toy_basis()), lambda s: phase(s, toy_basis()), lambda s: correct_eddy_currents(s, s)):
        out = step(hiss)
        out = out[0] if isinstance(out, tuple) else out
        assert torch.isfinite(torch.view_as_real(out.fids)).all()
    assert quality_filter(zero)[1] == ['empty']*2 and quality_filter(hiss)[1] == ['low_snr']*2


def test_inputs_are_left_alone():
    data = Spectra(brain() + WATER, acquisition=ACQ)
    before = data.fids.clone()
    for step in (remove_water, normalise, lambda s: align(s, toy_basis()), lambda s: phase(s, toy_basis()), lambda s: correct_eddy_currents(s, s)): step(data)
    assert torch.equal(data.fids, before) and data.notes == []


# --- quality

def test_noise_sd_under_long_lived_signal_and_zero_filling():
    fids = 50*line(4.65, 1., 4.) + brain(d=8.) + noise(200, .05)
    sd = noise_sd(Spectra(fids, acquisition=ACQ))
    assert abs(float(sd.median())/.05 - 1) < .06 and float(sd.std()) < .005
    padded = torch.nn.functional.pad(fids, (0, 2048))
    a, b = Spectra(fids, acquisition=ACQ), Spectra(padded, acquisition=ACQ)
    assert torch.allclose(snr(a), snr(b), rtol=1e-2) and torch.allclose(linewidth(a), linewidth(b), rtol=1e-2)


def test_linewidth_at_any_phase_and_of_named_singlets():
    wide = torch.tensor([5., 15., 40.], dtype=torch.float64)
    fids = torch.stack([(line(2.008, 1., d) + line(3.027, 1., 2*d))*np.exp(1j*i) for i, d in enumerate(wide)])
    s = Spectra(fids, acquisition=ACQ)
    assert (linewidth(s)*math.pi/wide - 1).abs().max() < .06
    assert (linewidth(s, 'Cr')*math.pi/2/wide - 1)[:2].abs().max() < .06 and torch.allclose(linewidth(s, 3.027), linewidth(s, 'Cr'), rtol=.01)
    assert torch.isnan(linewidth(Spectra(torch.eye(1, 2048), acquisition=ACQ))).all()  # a flat spectrum has no width
    with pytest.raises(InputError): snr(s, 'Glu')


# --- the real voxel

def test_the_real_voxel():
    voxel, ref = real('sub-01_press_act.nii.gz'), real('sub-01_press_ref.nii.gz')
    basis = toy_basis(voxel.acquisition)
    a, _ = phase(align(remove_water(correct_eddy_currents(voxel, ref)), basis)[0], basis)
    assert not any('conj' in n for n in a.notes) and quality_filter(a)[1] == ['ok']
    assert 4 < float(linewidth(a)) < 10 and float(snr(a)) > 50
    b, shift = align(remove_water(voxel), basis)  # no reference: the same orientation, a shift near LCModel's
    b, phi = phase(b, basis)
    assert not any('conj' in n for n in b.notes) and shift.abs().max() < 10
    real_part = part(b.spectrum()[0].real, 1.9, 2.1, voxel.acquisition)
    assert real_part.max() > 2*part(b.spectrum()[0].real.abs(), 5.5, 8., voxel.acquisition).max()
    turned, _ = align(remove_water(voxel.replace(voxel.fids.conj())), basis)
    assert 'The data were conjugated; they have been turned.' in turned.notes
    raw, raw_shift = align(voxel, basis)  # water and all
    assert (raw_shift - shift).abs().max() < 2 and not any('conj' in n for n in raw.notes)
