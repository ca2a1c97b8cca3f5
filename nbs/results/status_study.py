"""Which statuses do good and faulty spectra get, and where should the thresholds be?

    python nbs/results/status_study.py              # rows go to status_study.csv
    python nbs/results/status_study.py --n 100      # more spectra a condition

Good spectra: those of `mismatch_study.py` at SNR 10 to 200 (macromolecules, line shape, widths, shifts and baseline that the preset does not describe), as they are, zero-filled and apodised; real voxels
where they are at hand. Faults: one each, at an SNR of 50. A false alarm is any status but `ok` for a good spectrum; a fault is missed where it is called `ok` although tNAA, tCr or tCho is off by more than
a fifth and three error bars. One row a spectrum.
"""
import argparse
import math
from pathlib import Path

import pandas as pd
import torch

import mismatch_study as mismatch
from deepmrs.basis import Basis
from deepmrs.core import Spectra, TOTALS, canonical_name
from deepmrs.model import adapt
from deepmrs.quantify import quantify

HERE = Path(__file__).resolve().parent
SNRS = (10, 20, 50, 100, 200)


def made(basis, n, snr, kind='normal', seed=0):
    "(`Spectra`, true amounts)"
    fids, truth, _ = mismatch.make_spectra(basis, n, snr, kind, seed=seed)
    return Spectra(fids, acquisition=basis.acquisition), truth


def shifted(s, ppm):
    return s.replace(s.fids*torch.exp(2j*math.pi*ppm*s.acquisition.spectrometer_frequency*s.acquisition.time_axis()))


def filled(s, times=4, width=0.):
    weighted = s.fids*torch.exp(-math.pi*width*s.acquisition.time_axis())
    return s.replace(torch.nn.functional.pad(weighted, (0, (times - 1)*s.acquisition.points)))


def delayed(s, points):
    "FIDs that begin some points late, with noise before them; negative: whose first points are lost"
    n, sd = s.acquisition.points, s.fids[:, -200:].real.std()
    if points < 0: return s.replace(torch.cat([s.fids[:, -points:], sd*torch.randn(len(s), -points, dtype=torch.complex64)*math.sqrt(2)], -1))
    before = sd*torch.randn(len(s), points, dtype=torch.complex64)*math.sqrt(2)
    return s.replace(torch.cat([before, s.fids], -1)[:, :n])


def with_lipids(s, times):
    "Lipids at 0.9 and 1.3 ppm that are so many times as high as NAA"
    acq = s.acquisition
    t, near = acq.time_axis(dtype=torch.float64), (acq.ppm_axis() - 2.01).abs() < .3
    unit = s.spectrum()[:, near].abs().amax(-1, keepdim=True)
    one = torch.exp((2j*math.pi*acq.to_hz(1.3) - 60)*t) + .4*torch.exp((2j*math.pi*acq.to_hz(.9) - 80)*t)
    height = torch.fft.fft(one).abs().max()
    return s.replace((s.fids + times*unit*one/height).to(torch.complex64))


def scrambled(basis):
    "A basis set whose spectra were multiplied by random signs, point by point"
    sign = 2*torch.randint(0, 2, (basis.acquisition.points,), generator=torch.Generator().manual_seed(1)) - 1
    return Basis(torch.fft.ifft(torch.fft.fft(basis.fids)*sign), basis.names, acquisition=basis.acquisition)


def faults(basis, n):
    "(name, `Spectra`, basis set, true amounts) of each fault"
    s, truth = made(basis, n, 50, seed=7)
    acq = s.acquisition
    mixed = s.fids.clone()
    mixed[:n//3] = mixed[:n//3].conj()
    yield 'delay of 68 points', delayed(s, 68), basis, truth
    yield 'delay of 5 points', delayed(s, 5), basis, truth
    yield 'first 5 points lost', delayed(s, -5), basis, truth
    yield 'imaginary part zero', s.replace(s.fids.real + 0j), basis, truth
    yield 'imaginary part a copy', s.replace(s.fids.real*(1 + 1j)), basis, truth
    yield 'dwell time 1 % off', Spectra(s.fids, acquisition=acq.replace(dwell_time=acq.dwell_time*1.01)), basis, truth
    yield 'dwell time 3 % off', Spectra(s.fids, acquisition=acq.replace(dwell_time=acq.dwell_time*1.03)), basis, truth
    yield 'lipids 20 times', with_lipids(s, 20), basis, truth
    yield '0.35 ppm off', shifted(s, .35), basis, truth
    yield '0.8 ppm off', shifted(s, .8), basis, truth
    yield 'basis set scrambled', s, scrambled(basis), truth
    yield 'a third conjugated', s.replace(mixed), basis, truth


def good(basis, n):
    "(name, SNR, `Spectra`, basis set, true amounts)"
    for snr in SNRS:
        for kind in mismatch.KINDS:
            s, truth = made(basis, n, snr, kind, seed=snr)
            yield f'good, amounts {kind}', snr, s, basis, truth
    s, truth = made(basis, n, 50, seed=3)
    yield 'zero-filled 4 times', 50, filled(s), basis, truth
    yield 'zero-filled 4 times, 3 Hz apodised', 50, filled(s, 4, 3.), basis, truth


def rows(name, snr, spectra, basis, truth, preset):
    "One row a spectrum: facts, status, errors of the totals"
    # there is no residual water in these spectra, and looking for it takes most of the time
    result = quantify(spectra, basis, preset=adapt(preset, remove_water='off'), posterior=False)
    q = result.quality()
    table = result.to_frame()
    out = q[['status', 'misfit', 'residual_correlation', 'unexplained', 'sd_scale', 'alignment_score', 'delay_s']].assign(condition=name, snr=snr)
    out['delay_gain'], out['lines_missing'] = result.facts['delay_gain'].numpy(), result.facts['lines_missing'].numpy()
    for total in ('tNAA', 'tCr', 'tCho'):
        true = sum(truth[:, i] for i, m in enumerate(basis.names) if canonical_name(m) in TOTALS[total]).numpy()
        g = table[table.metabolite == total]
        out[f'{total}_error'] = g.amplitude.to_numpy()/true - 1
        out[f'{total}_z'] = (g.amplitude.to_numpy() - true)/g.sd.to_numpy()
    print(f'{name}, SNR {snr}: {out.status.value_counts().to_dict()}', flush=True)
    return out


def summary(table):
    "What each condition came to"
    g = table.groupby(['condition', 'snr'], sort=False)
    wrong = pd.concat([(table[f'{t}_error'].abs() > .2) & (table[f'{t}_z'].abs() > 3) for t in ('tNAA', 'tCr', 'tCho')], axis=1).any(axis=1)
    out = g.agg(n=('status', 'size'), ok=('status', lambda s: (s == 'ok').mean()), misfit=('misfit', 'median'), unexplained=('unexplained', 'max'), score=('alignment_score', 'min'),
                late=('delay_s', lambda s: 1e3*s.abs().max()), gain=('delay_gain', 'max'), missing=('lines_missing', 'max'), scale=('sd_scale', 'median'))
    out['wrong and ok'] = (wrong & (table.status == 'ok')).groupby([table.condition, table.snr], sort=False).mean()
    out['statuses'] = g.status.agg(lambda s: ', '.join(f'{k} {v}' for k, v in s.value_counts().items()))
    return out


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--out', type=Path, default=HERE/'status_study.csv')
    p.add_argument('--n', type=int, default=24, help='spectra a condition')
    p.add_argument('--preset', default='brain-3t')
    args = p.parse_args()
    torch.manual_seed(0)
    basis = mismatch.simulate_basis(**mismatch.FIELDS[args.preset])
    basis = basis.select([n for n in basis.names if canonical_name(n) in mismatch.TYPICAL])
    tables = [rows(*case, args.preset) for case in good(basis, args.n)]
    for name, spectra, used, truth in faults(basis, max(args.n//2, 6)): tables.append(rows(name, 50, spectra, used, truth, args.preset))
    table = pd.concat(tables, ignore_index=True)
    table.to_csv(args.out, index=False, float_format='%.4g')
    pd.set_option('display.width', 250, 'display.max_columns', 30, 'display.max_colwidth', 60)
    print(summary(table).round(3).to_string())


if __name__ == '__main__': main()
