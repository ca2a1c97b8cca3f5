"Preprocessing against another HLSVD, on odd batches, on extreme scales and on a real voxel."
import json, math, sys, time, types
from pathlib import Path

import numpy as np
import pytest
import torch

from deepmrs.basis import Basis
from deepmrs.core import Acquisition, InputError, Spectra, fid_to_spectrum
from deepmrs.preprocess import (_powers, Augmented, align, correct_eddy_currents, covers_water, exponentials, line_spectra, linewidth, noise_sd, normalise,
                                phase, prepare_cohort, quality_filter, remove_exponentials, remove_water, snr, water_model)

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

def pools(n, size, seed=0, acq=ACQ):
    "Residual water [n, N]: four lines each, 5 to 50 Hz wide, 0 to 30 Hz apart, together `size` times the brain's first point"
    g = torch.Generator().manual_seed(seed)
    uniform = lambda low, high, *shape: low + (high - low)*torch.rand(*shape, dtype=torch.float64, generator=g)
    hz = (uniform(4.6, 4.7, n, 1) - acq.centre_ppm)*acq.spectrometer_frequency + uniform(-15, 15, n, 4)
    rate = torch.complex(-math.pi*uniform(5, 50, n, 4), 2*math.pi*hz)
    weight = torch.polar(uniform(0, 1, n, 4), uniform(-math.pi, math.pi, n, 4))
    fids = (weight[..., None]*torch.exp(rate[..., None]*acq.time_axis(dtype=torch.float64))).sum(1)
    return fids/fids[:, :1].abs()*size*brain()[0].abs()


def test_line_spectra_are_the_transform_of_damped_exponentials():
    every = torch.arange(ACQ.points)
    ppm, damping = torch.tensor([4.7, 2.0, 9.9], dtype=torch.float64), torch.tensor([15., 60., 3.], dtype=torch.float64)
    t = np.arange(ACQ.points)*ACQ.dwell_time
    fids = np.exp((2j*np.pi*(ppm.numpy()[:, None] - ACQ.centre_ppm)*ACQ.spectrometer_frequency - damping.numpy()[:, None])*t)
    fids[:, 0] /= 2
    want = np.fft.fftshift(np.fft.fft(fids), axes=-1)
    assert np.abs(line_spectra(ACQ, ppm, damping, every).numpy().T - want).max() < 1e-9*np.abs(want).max()


def test_the_water_model_is_the_gaussian_process_it_says():
    "Against the textbook formula with full matrices: K_w (K_w + K_o + 2)⁻¹ y, and the posterior covariance in the window"
    from deepmrs import preprocess as pp
    acq = ACQ.replace(points=512)
    model, heard = water_model(acq), pp.heard_points(acq)
    inside = torch.nonzero((acq.ppm_axis() >= .2) & (acq.ppm_axis() <= 4.2))[:, 0]
    ppm, damping, size = pp._water_lines(acq)
    scale = size/math.sqrt(acq.points)
    above, below = (line_spectra(acq, ppm, damping, k)*scale for k in (heard, inside))
    everything = above @ above.mH + pp._others_and_noise(acq, heard)
    fid = pools(1, 20.)[0, :512] + noise(1)[0, :512]
    y = fid_to_spectrum(fid)[heard]/math.sqrt(acq.points)
    fids = torch.exp(torch.complex(-damping, 2*math.pi*(ppm - acq.centre_ppm)*acq.spectrometer_frequency)[:, None]*acq.time_axis(dtype=torch.float64))
    want = ((above.mH @ torch.linalg.solve(everything, y))*size) @ fids
    got = (fid @ model.reader) @ model.shapes
    assert (got - want).norm() < 1e-3*want.norm()  # patterns that stay below a tenth of the noise are left out
    cov = below @ below.mH - below @ above.mH @ torch.linalg.solve(everything, above @ below.mH)
    tails = model.tails[:, inside]
    ours = tails.T @ (2*model.tail_variance[:, None]*tails.conj())
    assert (ours - cov).abs().max() < 1e-3*cov.abs().max()


@pytest.mark.parametrize('acq', [ACQ, ACQ.replace(dwell_time=2.5e-4), ACQ.replace(spectrometer_frequency=297.2, dwell_time=1.667e-4, points=4096)])
def test_water_of_any_size_leaves_no_trace_that_the_fit_does_not_settle(acq):
    wet = pools(40, 200., acq=acq)
    inside = torch.nonzero((acq.ppm_axis() >= .2) & (acq.ppm_axis() <= 4.2))[:, 0]
    tails = water_model(acq).tails[:, inside]
    left = remove_water(Spectra(wet, acquisition=acq)).spectrum().to(torch.complex128)[:, inside]
    left = (left - (left @ tails.mH) @ tails).abs().amax(-1)
    sd = brain()[0].abs()/200*math.sqrt(acq.points)  # the noise of a spectrum with an SNR of about 60
    assert left.max() < .1*sd
    assert fid_to_spectrum(wet)[:, inside].abs().amax() > 100*sd


def test_water_removal_is_linear():
    a, b = brain() + pools(1, 20.)[0], noise(1)[0] + pools(1, 100., seed=1)[0]
    dry = lambda x: remove_water(Spectra(x, acquisition=ACQ)).fids[0].to(torch.complex128)
    assert torch.allclose(dry(2e3*np.exp(1j)*a + b), 2e3*np.exp(1j)*dry(a) + dry(b), atol=1e-5*2e3*float(a.abs().max()))


def test_water_agrees_with_hlsvd_on_the_real_voxel():
    voxel = real('sub-01_press_act.nii.gz')
    acq, fid = voxel.acquisition, voxel.fids[0]
    ours = remove_water(voxel).fids[0]
    theirs = torch.from_numpy(fid.numpy() - other_hlsvd(fid, acq, (4.2, 5.1), 24))
    S = {k: fid_to_spectrum(x.to(torch.complex128)) for k, x in dict(raw=fid, ours=ours, theirs=theirs).items()}
    water = {k: float(part(s.abs(), 4.4, 5., acq).max()) for k, s in S.items()}
    assert water['ours'] < .02*water['raw'] and water['ours'] < 1.5*water['theirs']
    inside = torch.nonzero((acq.ppm_axis() >= .2) & (acq.ppm_axis() <= 4.2))[:, 0]
    tails = water_model(acq).tails[:, inside]
    apart = (S['ours'] - S['theirs'])[inside]
    naa = float(part(S['theirs'].abs(), 1.9, 2.1, acq).max())
    assert float((apart - (apart @ tails.mH) @ tails).abs().max()) < .05*naa  # but for the patterns left to the fit


def test_water_agrees_with_the_other_hlsvd():
    fid = brain() + WATER + noise(1)[0]
    ours = remove_exponentials(Spectra(fid, acquisition=ACQ), components=24)
    theirs = fid.numpy() - other_hlsvd(fid, ACQ, (4.2, 5.1), 24)
    d = fid_to_spectrum(ours.fids[0] - torch.from_numpy(theirs)).abs()
    sd = .05*math.sqrt(2048)
    assert part(d, .2, 4.1).max() < sd and part(d, 4.3, 5.).max() < 3*sd
    assert part(fid_to_spectrum(WATER).abs(), 4.3, 5.).max() > 1e3*sd


def exact_space(fid, k):
    "Leading left singular vectors of the Hankel matrix of a FID, without tricks"
    rows = len(fid)//2
    return torch.linalg.svd(fid.unfold(0, len(fid) + 1 - rows, 1).contiguous()).U[:, :k]


def test_the_signal_space_is_the_exact_one():
    from deepmrs.preprocess import _signal_space
    fid = (brain() + pools(1, 20.)[0] + noise(1)[0])[:512]
    U, exact = _signal_space(fid[None], 16)[0], exact_space(fid, 16)
    cosines = torch.linalg.svdvals(exact.mH @ U)
    assert cosines[:8].min() > 1 - 1e-6 and cosines[:12].min() > .999  # the last ones are noise


def test_powers_are_those_of_the_exponential():
    log_z, _ = exponentials(troubled(3)[0].fids, 12)
    for n in (1, 63, 64, 65, 2048):
        want = torch.exp(torch.arange(n)[:, None]*log_z[:, None])
        assert (_powers(log_z, n) - want).abs().max() < 1e-10


def test_water_in_a_grid_with_empty_voxels_and_odd_lengths():
    fids = torch.zeros(2, 3, 1, 2048, dtype=torch.complex128)
    fids[0, 1], fids[1, 2] = brain() + WATER, 1e9*(brain() + WATER)
    grid = Spectra(fids, acquisition=ACQ, affine=np.eye(4))
    dry = remove_water(grid)
    assert dry.shape == (2, 3, 1) and dry.affine is grid.affine and len(dry.notes) == 1
    empty = (fids.reshape(-1, 2048) == 0).all(-1)
    assert (dry.fids[empty] == 0).all() and torch.isfinite(torch.view_as_real(dry.fids)).all()
    assert torch.allclose(dry.fids[5]/1e9, dry.fids[1], atol=1e-3)
    for n in (2047, 301, 128):
        out = remove_water(Spectra((brain() + WATER + noise(1)[0])[:n], acquisition=ACQ))
        assert out.fids.shape == (1, n) and out.fids.norm() < (brain() + WATER)[:n].norm()
    for short in (ACQ.replace(points=64), ACQ.replace(dwell_time=8e-3)):
        assert not covers_water(short)
        with pytest.raises(InputError, match='too few to tell the water'): remove_water(Spectra(torch.ones(short.points), acquisition=short))


def test_aligned_data_end_in_the_same_place_wherever_they_began():
    from deepmrs.preprocess import align_under_water
    t = ACQ.time_axis(dtype=torch.float64)
    data = torch.stack([brain(), brain(d=20.)]) + noise(2) + pools(2, 50.)
    first = None
    for hz in (0., 1.23, -12.7, 7.31):
        moved, shift = align_under_water(Spectra(data*torch.exp(2j*math.pi*hz*t), acquisition=ACQ), toy_basis())
        first = shift if first is None else first
        assert (shift - hz - first).abs().max() < .02


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
    for step in (remove_water, remove_exponentials, normalise, lambda s: align(s, toy_basis()), lambda s: phase(s, toy_basis()), lambda s: correct_eddy_currents(hiss, s)):
        with pytest.raises(InputError): step(zero)
    for step in (remove_water, remove_exponentials, normalise, lambda s: align(s, toy_basis()), lambda s: phase(s, toy_basis()), lambda s: correct_eddy_currents(s, s)):
        out = step(hiss)
        out = out[0] if isinstance(out, tuple) else out
        assert torch.isfinite(torch.view_as_real(out.fids)).all()
    assert quality_filter(zero)[1] == ['empty']*2 and quality_filter(hiss)[1] == ['low_snr']*2


def test_inputs_are_left_alone():
    data = Spectra(brain() + WATER, acquisition=ACQ)
    before = data.fids.clone()
    for step in (remove_water, remove_exponentials, normalise, lambda s: align(s, toy_basis()), lambda s: phase(s, toy_basis()), lambda s: correct_eddy_currents(s, s)): step(data)
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


# --- cohorts

def troubled(n=40, seed=0, sd=.08):
    "(`Spectra` with water, phase, offset and gain of their own, offsets (Hz) [n], gains [n])"
    gen = torch.Generator().manual_seed(seed)
    u = lambda low, high: low + (high - low)*torch.rand(n, 1, dtype=torch.float64, generator=gen)
    hz, gain = u(-15, 15), 10**u(-9, 3)
    fids = (brain() + u(.1, 3)*WATER)*torch.exp(1j*u(-3, 3) + 2j*math.pi*hz*T) + noise(n, sd, seed)
    return Spectra(fids*gain, acquisition=ACQ, names=[f'v{i}' for i in range(n)]), hz[:, 0], gain[:, 0]


def test_a_cohort_is_brought_together():
    data, hz, gain = troubled()
    before = data.fids.clone()
    cohort = prepare_cohort(data, toy_basis(), size=7.)
    assert torch.equal(data.fids, before) and data.notes == [] and len(cohort.used()) == 40 and cohort.used().names == data.names
    assert (torch.tensor(cohort.table.shift_hz) - hz).abs().max() < 1
    lines = part(cohort.spectra.spectrum(), .2, 4.2)
    assert torch.allclose(lines.abs().amax(-1), torch.full((40,), 7.), rtol=1e-4)
    assert torch.allclose(cohort.spectra.fids*torch.tensor(cohort.table.scale)[:, None], cohort.spectra.fids*(torch.tensor(cohort.table.scale)[:, None])) and torch.tensor(cohort.table.scale/gain.numpy()).std()/torch.tensor(cohort.table.scale/gain.numpy()).mean() < .05
    turn = torch.angle((lines*part(fid_to_spectrum(brain()), .2, 4.2).conj()).sum(-1))
    assert turn.std() < .05  # one phase for all
    assert part(cohort.spectra.spectrum().abs(), 4.4, 4.9).max() < 3


def test_each_reason_for_leaving_a_spectrum_out():
    data, _, gain = troubled(30, 1)
    fids = data.fids.clone().to(torch.complex128)
    fids[2] = 0
    fids[5] = noise(1, 1.)[0]
    fids[9] = gain[9]*brain(d=90.)
    fids[14] += gain[14]*line(1.3, 60., 90.)
    cohort = prepare_cohort(Spectra(fids, acquisition=ACQ), toy_basis())
    left = {i: s for i, s in enumerate(cohort.table.status) if s != 'ok'}
    assert left == {2: 'empty', 5: 'low_snr', 9: 'broad', 14: 'odd'} and cohort.counts() == '1 empty, 1 low_snr, 1 broad, 1 odd'
    assert cohort.spectra.notes[-1] == '26 of 30 spectra are good enough to learn from; left out: 1 empty, 1 low_snr, 1 broad, 1 odd.'
    assert len(cohort[:10]) == 10 and cohort[:10].counts() == '1 empty, 1 low_snr, 1 broad' and len(cohort[10:].used()) == 19
    free = prepare_cohort(Spectra(fids, acquisition=ACQ), toy_basis(), min_snr=None, max_linewidth=None, min_likeness=None)
    assert [i for i, s in enumerate(free.table.status) if s != 'ok'] == [2]
    with pytest.raises(InputError, match='Only 0 of 30.*low_snr'): prepare_cohort(Spectra(fids, acquisition=ACQ), toy_basis(), min_snr=1e9).used()


def test_a_cohort_is_prepared_fast():
    data, *_ = troubled(64)
    prepare_cohort(data[:8], toy_basis())
    start = time.process_time()
    prepare_cohort(data, toy_basis())
    assert (time.process_time() - start)/64 < .1  # some 15 ms on a free core


# --- changed copies

def test_augmentation_changes_what_it_says():
    s = Spectra(torch.exp(-30*torch.arange(256)*5e-4)[None].repeat(400, 1).to(torch.complex64), dwell_time=5e-4, spectrometer_frequency=123.2)
    sd, gen, off = torch.full((400,), .01), lambda: torch.Generator().manual_seed(1), dict(shift=0., phase=0., amplitude=0., damping=0., noise=0.)
    same, sd_same = Augmented(s, **off).change(s.fids, sd, gen())
    assert torch.allclose(same, s.fids) and torch.equal(sd_same, sd)
    first = Augmented(s, **off | {'phase': .3, 'amplitude': .2}).change(s.fids, sd, gen())[0][:, 0]
    assert .28 < first.angle().abs().max() <= .3 and .8 <= first.abs().min() < .83 < 1.17 < first.abs().max() <= 1.2
    slope = Augmented(s, **off | {'shift': 4., 'damping': 10.}).change(s.fids, sd, gen())[0]/s.fids
    hz, d = slope[:, 10].angle()/(2*math.pi*10*5e-4), -slope[:, 10].abs().log()/(10*5e-4)
    assert 3.8 < hz.abs().max() <= 4.001 and abs(float(hz.mean())) < .5 and -1e-3 < d.min() < .3 and 9.7 < d.max() <= 10.001
    noisy, sd_noisy = Augmented(s, **off | {'noise': .05}).change(s.fids, sd, gen())
    assert abs(float(torch.view_as_real(noisy - s.fids).std())/.05 - 1) < .01 and torch.allclose(sd_noisy, torch.tensor(math.hypot(.01, .05)))
    half = Augmented(s, share=.5, noise=.01).change(s.fids, sd, gen())[0]
    assert .4 < (half == s.fids).all(-1).float().mean() < .6
    assert torch.equal(Augmented(s).change(s.fids, sd, gen())[0], Augmented(s).change(s.fids, sd, gen())[0])
    for bad in (dict(shift=-1), dict(amplitude=1.), dict(share=2.)):
        with pytest.raises(InputError): Augmented(s, **bad)


def test_training_draws_changed_spectra_and_judges_by_unchanged_ones():
    from deepmrs.training import Measured
    data = Spectra(brain()[None].repeat(30, 1)*torch.arange(1, 31)[:, None], acquisition=ACQ)
    gen = lambda k: torch.Generator().manual_seed(k)
    drawn, plain = Measured(Augmented(data, amplitude=0., noise=.02), 512), Measured(data, 512)
    a, b = drawn(64, gen(1))[0], drawn(64, gen(2))[0]
    assert not torch.equal(a, b) and torch.equal(a, drawn(64, gen(1))[0])  # another draw for another step, the same for the same
    known = data.fids[:, None, :8]
    assert not any((a[i, :8] == known[:, 0]).all(-1).any() for i in range(64))
    assert torch.equal(drawn(3, gen(1), 0)[0], plain(3, gen(1), 0)[0]) and drawn.held == 3
    assert (drawn(64, gen(1))[3] > plain(64, gen(1))[3].min()).all()


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
