"""Changes of the data that must not change the answer, for every preset.

A move is |amount after − amount before| / error bar before, the largest over all metabolites and
spectra. Where a change takes nothing away from the data (scale, phase, place, zero filling, order),
the amounts may move by a tenth of an error bar, which is what a fit stops at. Where it does take
something away (fewer points, a spike), they may move as far as that is worth, or the status must
say so.
"""

import math
from functools import lru_cache

import pytest
import torch

from deepmrs.basis import Basis, shift_ppm
from deepmrs.core import Spectra
from deepmrs.demo import healthy_priors
from deepmrs.model import make_decoder
from deepmrs.quantify import quantify
from deepmrs.simulate import Simulator
from deepmrs.spins import simulate_basis

FIELD = {
    'brain-3t': 123.2,
    'brain-7t': 297.2,
    'rodent-9.4t': 400.2,
    'phantom': 123.2,
    'none': 123.2,
}  # MHz
PREPARED = [p for p in FIELD if p != 'none']  # presets that remove water, align and phase
NAMES = ['NAA', 'NAAG', 'Cr', 'PCr', 'GPC', 'PCho', 'Ins', 'sIns', 'Glu', 'Gln', 'GABA', 'GSH']
SAME = 0.1  # error bars
SECONDS = 0.512  # that a FID lasts
SPECTRA = 3
SHARPNESS = 25.0  # first point of the metabolites over the noise sd
every_preset = pytest.mark.parametrize('preset', FIELD)
every_prepared = pytest.mark.parametrize('preset', PREPARED)


# ---- simulated spectra, and what is done with them


def dwell_time(preset):
    "Half a millisecond at 3 T, and as many ppm at other fields"
    return 5e-4 if FIELD[preset] < 200 else 2e-4 if FIELD[preset] < 350 else 1.6e-4


@lru_cache
def basis_of(preset, finer=1, names=tuple(NAMES)):
    "PRESS with a short echo time at the preset's field; `finer` times as many points a second"
    dwell = dwell_time(preset) / finer
    return simulate_basis(
        list(names),
        te1=0.011,
        te2=0.019,
        spectrometer_frequency=FIELD[preset],
        dwell_time=dwell,
        points=round(SECONDS / dwell),
    )


@lru_cache
def simulated(preset, finer=1):
    "(clean FIDs [B, N], noise [B, N], acquisition); the truth is the same for all `finer`"
    basis = basis_of(preset, finer)
    decoder, _, _ = make_decoder(basis, preset=preset)
    priors = healthy_priors(decoder)
    params = Simulator(decoder, priors, 0.0).sample(SPECTRA, torch.Generator().manual_seed(1))
    with torch.no_grad():
        clean = decoder(params)
    first = sum(decoder.fids[basis.index(n), 0].abs() * 8 for n in ('NAA', 'Cr'))
    noise = torch.randn(
        SPECTRA,
        basis.acquisition.points,
        dtype=torch.complex64,
        generator=torch.Generator().manual_seed(2),
    )
    return clean, noise * float(first) / SHARPNESS, basis.acquisition


@lru_cache
def spectra_of(preset):
    clean, noise, acq = simulated(preset)
    return Spectra(clean + noise, acquisition=acq)


def amounts(spectra, preset, basis=None, **options):
    return quantify(
        spectra, basis or basis_of(preset), preset=preset, posterior=False, device='cpu', **options
    )


@lru_cache
def before(preset):
    "The result that changes are compared with"
    result = amounts(spectra_of(preset), preset)
    assert set(result.reasons) == {'ok'}, result.reasons
    return result


def repeated(preset, changes):
    "All spectra, changed by each of the functions FIDs → FIDs, in one batch [len(changes)·B, N]"
    s = spectra_of(preset)
    return s.replace(
        torch.cat([change(s.fids) for change in changes]),
        names=None,
        shape=(len(changes) * len(s),),
    )


def moves(reference, after, scale=1.0):
    "Largest move of each copy of the spectra [copies], in error bars of the reference"
    copies = len(after) // len(reference)
    there = after.amplitudes.double().reshape(copies, len(reference), -1) / scale
    return ((there - reference.amplitudes) / reference.sd).abs().nan_to_num(math.inf).amax((1, 2))


def sd_ratio(reference, after, scale=1.0):
    "Median over metabolites and spectra of the error bars after over those before"
    copies = len(after) // len(reference)
    return float((after.sd / scale / reference.sd.repeat(copies, 1)).median())


def assert_same(reference, after, limit=SAME, scale=1.0, sd=0.03, what=''):
    "Amounts moved by less than `limit` error bars, these changed by less than `sd`, all ok"
    moved = moves(reference, after, scale)
    assert moved.max() < limit, f'{what}: moved by {[round(float(m), 2) for m in moved]} error bars'
    assert abs(sd_ratio(reference, after, scale) - 1) < sd, (
        f'{what}: error bars × {sd_ratio(reference, after, scale):.3f}'
    )
    assert set(after.reasons) == {'ok'}, after.reasons


def assert_near_or_said(reference, after, limit, what=''):
    "Amounts within `limit` error bars (the larger of before and after), or a status that is not ok"
    copies = len(after) // len(reference)
    bar = torch.maximum(reference.sd.repeat(copies, 1), after.sd.nan_to_num(0.0))
    moved = (
        ((after.amplitudes - reference.amplitudes.repeat(copies, 1)) / bar)
        .abs()
        .nan_to_num(math.inf)
        .amax(1)
    )
    wrong = [
        f'spectrum {i}: {float(m):.1f} error bars'
        for i, (m, r) in enumerate(zip(moved, after.reasons))
        if r == 'ok' and m > limit
    ]
    assert not wrong, f'{what}, status ok: {"; ".join(wrong)}'


def lines(acq, rows):
    "FID [N] of lines (Hz, width Hz, size, phase rad)"
    t = acq.time_axis(dtype=torch.float64)
    return sum(
        a * torch.exp(1j * torch.tensor(phi) + (2j * math.pi * f - math.pi * w) * t)
        for f, w, a, phi in rows
    )


# ---- changes that take nothing away


@every_preset
def test_scale_of_the_data(preset):
    for scale in (1e-6, 1e6):
        s = spectra_of(preset)
        assert_same(
            before(preset),
            amounts(s.replace(s.fids * scale), preset),
            scale=scale,
            what=f'× {scale:g}',
        )


@every_preset
def test_scale_of_the_basis_set(preset):
    basis = basis_of(preset)
    after = amounts(spectra_of(preset), preset, basis.replace(basis.fids * 1e3))
    assert_same(before(preset), after, scale=1e-3)


@every_preset
def test_phase(preset):
    turns = (0.5, math.pi / 2, 2.5, math.pi)
    after = amounts(
        repeated(preset, [lambda x, a=a: x * complex(math.cos(a), math.sin(a)) for a in turns]),
        preset,
    )
    assert_same(before(preset), after, what=f'turned by {turns} rad')


@every_prepared
def test_shift(preset):
    acq, ppms = spectra_of(preset).acquisition, (-0.1, -0.02, 0.02, 0.1)
    after = amounts(repeated(preset, [lambda x, p=p: shift_ppm(x, acq, p) for p in ppms]), preset)
    assert_same(before(preset), after, what=f'moved by {ppms} ppm')


def test_shift_of_the_bare_model():
    "What its shift reaches is the same, what is out of reach has a status"
    acq = spectra_of('none').acquisition
    near = amounts(
        repeated('none', [lambda x, p=p: shift_ppm(x, acq, p) for p in (-0.02, 0.02)]), 'none'
    )
    assert_same(before('none'), near, what='moved by 0.02 ppm')
    far = amounts(
        repeated('none', [lambda x, p=p: shift_ppm(x, acq, p) for p in (-0.3, 0.1, 0.3)]), 'none'
    )
    assert_near_or_said(before('none'), far, SAME, 'moved by -0.3, 0.1, 0.3 ppm')


@every_prepared
def test_conjugation(preset):
    after = amounts(repeated(preset, [torch.conj_physical]), preset)
    assert_same(before(preset), after, what='all conjugated')
    assert any('conjugated' in n for n in after.notes)


@every_prepared
def test_conjugation_of_some(preset):
    "Orientation belongs to each spectrum, not to the batch"
    mixed = repeated(preset, [torch.conj_physical, torch.conj_physical, lambda x: x])
    assert_same(before(preset), amounts(mixed, preset), what='two thirds conjugated')
    mixed = repeated(preset, [torch.conj_physical, lambda x: x, lambda x: x])
    assert_same(before(preset), amounts(mixed, preset), what='a third conjugated')


def test_conjugation_is_said_by_the_bare_model():
    after = amounts(repeated('none', [torch.conj_physical]), 'none')
    assert any('conjugated' in n for n in after.notes) and 'ok' not in after.reasons, (
        after.reasons,
        after.notes,
    )


@every_preset
@pytest.mark.parametrize('factor', [2, 4])
def test_zero_filling(preset, factor):
    "Zeros at the end are no measurement: neither amounts nor error bars change"
    s = spectra_of(preset)
    filled = s.replace(torch.nn.functional.pad(s.fids, (0, (factor - 1) * s.acquisition.points)))
    basis = basis_of(preset)
    longer = Basis(
        torch.nn.functional.pad(basis.fids, (0, (factor - 1) * s.acquisition.points)),
        basis.names,
        acquisition=basis.acquisition.replace(points=factor * s.acquisition.points),
    )
    after = amounts(filled, preset, longer)
    assert_same(before(preset), after, what=f'zero-filled × {factor}')
    now, then = after.quality(), before(preset).quality()
    assert ((now.snr / then.snr - 1).abs() < 0.2).all(), (now.snr.tolist(), then.snr.tolist())


@every_preset
def test_finer_basis_set(preset):
    "A basis set with twice the points in each second is resampled to the data"
    assert_same(before(preset), amounts(spectra_of(preset), preset, basis_of(preset, finer=2)))


@every_preset
def test_finer_data(preset):
    "The same spectra and the same noise inside the old band, twice the bandwidth"
    clean, noise, _ = simulated(preset)
    finer, _, acq = simulated(preset, finer=2)
    n = noise.shape[1]
    inside = torch.fft.fftshift(torch.fft.fft(noise.to(torch.complex128)), dim=-1)
    wide = inside.abs().square().mean().sqrt() * torch.randn(
        len(noise), 2 * n, dtype=torch.complex128, generator=torch.Generator().manual_seed(3)
    )
    wide[:, n - n // 2 : n - n // 2 + n] = inside
    wide = 2 * torch.fft.ifft(
        torch.fft.ifftshift(wide, dim=-1)
    )  # as high in the spectrum, whose dwell time is half as long
    after = amounts(Spectra(finer + wide.to(finer.dtype), acquisition=acq), preset)
    # The new band holds a little: the feet of the lines, and half of the first point's noise, a
    # constant under the spectrum
    assert_same(before(preset), after, limit=0.5, sd=0.15)


@every_preset
def test_order_of_the_spectra(preset):
    s, order = spectra_of(preset), [2, 0, 1]
    after = amounts(s.replace(s.fids[order]), preset)
    reference = before(preset)
    moved = ((after.amplitudes - reference.amplitudes[order]) / reference.sd[order]).abs().max()
    assert moved < 0.01, float(moved)


@every_preset
def test_one_alone(preset):
    reference, s = before(preset), spectra_of(preset)
    for i in range(len(s)):
        alone = amounts(s[i], preset)
        moved = ((alone.amplitudes[0] - reference.amplitudes[i]) / reference.sd[i]).abs().max()
        assert moved < SAME and alone.reasons == ['ok'], (i, float(moved), alone.reasons)


@every_preset
def test_other_names_in_another_order(preset):
    other = {
        'Ins': 'mI',
        'sIns': 'Scyllo',
        'PCho': 'PCh',
        'GPC': 'GPCho',
        'Cr': 'Creatine',
        'GSH': 'Glutathione',
    }
    basis = basis_of(preset)
    renamed = basis.select(NAMES[::-1]).replace(names=[other.get(n, n) for n in NAMES[::-1]])
    after, reference = amounts(spectra_of(preset), preset, renamed), before(preset)
    assert after.names == [other.get(n, n) for n in NAMES[::-1]]
    moved = ((after.amplitudes.flip(1) - reference.amplitudes) / reference.sd).abs().max()
    assert moved < SAME, float(moved)


# ---- changes that take something away, or add something


@every_preset
def test_half_of_the_points(preset):
    "The second half of a FID holds hardly more than noise"
    s = spectra_of(preset)
    n = s.acquisition.points // 2
    after = amounts(s.replace(s.fids[:, :n]), preset)
    assert moves(before(preset), after).max() < 1.5, moves(before(preset), after)
    assert 0.9 < sd_ratio(before(preset), after) < 1.5 and set(after.reasons) == {'ok'}, (
        sd_ratio(before(preset), after),
        after.reasons,
    )


@every_preset
def test_an_absent_metabolite(preset):
    "Alanine, which is not in the data: it is not found, and the others stay within an error bar"
    after = amounts(spectra_of(preset), preset, basis_of(preset, names=(*NAMES, 'Ala')))
    reference = before(preset)
    moved = ((after.amplitudes[:, : len(NAMES)] - reference.amplitudes) / reference.sd).abs().max()
    found = (after.amplitudes[:, -1] / after.sd[:, -1]).max()
    assert moved < 1 and found < 3 and set(after.reasons) == {'ok'}, (
        float(moved),
        float(found),
        after.reasons,
    )


@every_preset
@pytest.mark.parametrize('size', [10, 1000])
def test_a_spike_in_one_point(preset, size):
    "One point is wrong by 10 or 1000 times the noise"
    s = spectra_of(preset)
    sd = float(simulated(preset)[1].real.std())
    fids = s.fids.clone()
    fids[:, 300] += size * sd * complex(0.6, 0.8)
    assert_near_or_said(
        before(preset), amounts(s.replace(fids), preset), 2.0, f'spike of {size} times the noise'
    )


@every_prepared
@pytest.mark.parametrize('size', [1.0, 30.0])
def test_a_constant_offset(preset, size):
    "It is a line of no width at the centre, where water is"
    s = spectra_of(preset)
    sd = float(simulated(preset)[1].real.std())
    assert_same(
        before(preset),
        amounts(s.replace(s.fids + size * sd), preset),
        what=f'offset of {size:g} times the noise',
    )


def test_a_constant_offset_in_the_bare_model():
    "Nothing in it explains an offset"
    s = spectra_of('none')
    sd = float(simulated('none')[1].real.std())
    for size in (1.0, 30.0):
        assert_near_or_said(
            before('none'),
            amounts(s.replace(s.fids + size * sd), 'none'),
            2.0,
            f'offset of {size:g} times the noise',
        )


# ---- residual water


@lru_cache
def waters(preset, many=4, seed=0):
    "FIDs [many, N] of first point 1: four lines each, 5 to 50 Hz wide, up to 30 Hz apart"
    g = torch.Generator().manual_seed(seed)
    acq, out = spectra_of(preset).acquisition, []
    for _ in range(many):
        u = torch.rand(4, 4, generator=g).tolist()
        x = lines(acq, [(30 * (a - 0.5), 5 + 45 * b, 0.2 + c, 2 * math.pi * d) for a, b, c, d in u])
        out.append(x / x[0].abs())
    return torch.stack(out)


def with_water(preset, times):
    "Functions FIDs → FIDs that add each of the waters, `times` the metabolites"
    first = simulated(preset)[0][:, :1].abs()
    return [lambda x, w=w: x + (times * first * w).to(x.dtype) for w in waters(preset)]


@every_prepared
@pytest.mark.parametrize('times', [1, 10, 200])
def test_residual_water(preset, times):
    after = amounts(repeated(preset, with_water(preset, times)), preset)
    assert_same(before(preset), after, what=f'water {times} times the metabolites')


@every_prepared
def test_changes_below_residual_water(preset):
    "With water ten times the metabolites: turned, scaled, moved by 0.01 to 0.1 ppm"
    acq, wet = spectra_of(preset).acquisition, with_water(preset, 10)[0]
    changes = [lambda x, p=p: shift_ppm(wet(x), acq, p) for p in (0.01, -0.02, 0.04, 0.1)]
    changes += [lambda x: wet(x) * 1j, lambda x: wet(x) * 50.0]
    after = amounts(repeated(preset, [wet]), preset)
    changed = amounts(repeated(preset, changes), preset)
    moved = moves(after, changed)[:5]
    assert moved.max() < SAME, [round(float(m), 2) for m in moved]
    scaled = ((changed.amplitudes[-SPECTRA:] / 50 - after.amplitudes) / after.sd).abs().max()
    assert scaled < SAME, float(scaled)
