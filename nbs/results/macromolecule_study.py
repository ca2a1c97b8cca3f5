"""Which macromolecules should a preset have? Spectra with known amounts and *measured* macromolecules, each fitted with a pattern derived from the other signals.

    python nbs/results/macromolecule_study.py --data ../shared/data          # rows go to macromolecule_study.csv
    python nbs/results/macromolecule_study.py --data ../shared/data --field brain-7t --n 12 --snr 60

The spectra are those of mismatch_study.py (own shifts and widths, a line shape that no model has, lipids, a random baseline, white noise), but their macromolecules are a measured, metabolite-nulled
signal (see macromolecule_pattern.py), up to some 0.01 ppm off, with a height at 0.9 ppm an eighth of NAA's. Signals of higher fields are broadened by 8 Hz to what they are at 3 T. The lines, amounts
and spreads of the kind `pattern` are derived anew without the signal that is in the spectra.
"""
import argparse
import math
import warnings
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch

import deepmrs.macromolecules
from deepmrs.core import canonical_name, fid_to_spectrum, spectrum_to_fid
from deepmrs.decoder import Decoder, Gaussian, Lorentzian, Phase, Shift, Signals
from deepmrs.macromolecules import CLASSICAL, line_signals, paper_lines
from deepmrs.model import PatternPrior, get_preset, proton_unit
from deepmrs.spins import simulate_basis
from macromolecule_pattern import GRID, NAMES, derive, measured_signals
from mismatch_study import FIELDS, TYPICAL, TwoParts, amounts, judge, random_baseline

HERE = Path(__file__).resolve().parent
KINDS = ('pattern', 'brain', 'classical', 'summed', 'parametrised')
OF_FIELD = {'brain-3t': ('human 3 T', 'Shamaei 3 T', 'human 7 T', 'human 9.4 T', 'rat 9.4 T'), 'brain-7t': ('human 7 T', 'human 9.4 T'), 'rodent-9.4t': ('rat 9.4 T', 'human 9.4 T')}


def causal_fid(acq, signal, shift, base, broadening=0.):
    "FID [N] of a measured signal on another axis: the real part of its spectrum without base, tapered at 0.3 and 4.45 ppm"
    fid, own, offset = signal
    spectrum = fid_to_spectrum(fid[None])[0].real.numpy()
    ppm = own.ppm_axis().numpy() - offset - shift
    order = np.argsort(ppm)
    x = acq.ppm_axis(dtype=torch.float64).numpy()
    y = np.interp(x, ppm[order], spectrum[order])/np.abs(spectrum[(ppm > .3) & (ppm < 4.15)]).max()
    y = y - np.interp(x, *base)
    taper = np.clip((x - .25)/.15, 0, 1)*np.clip((4.5 - x)/.15, 0, 1)
    both_sides = spectrum_to_fid(torch.tensor(y*taper)[None].to(torch.complex128))[0]
    late = torch.arange(acq.points) >= acq.points//2
    half = torch.where(late, torch.zeros_like(both_sides), both_sides)
    out = torch.cat([half[:1], 2*half[1:]])
    out = out*torch.exp(-math.pi*broadening*acq.time_axis(dtype=torch.float64))
    real = fid_to_spectrum(out[None])[0].real
    if real[(acq.ppm_axis() > .8) & (acq.ppm_axis() < 1)].max() <= 0: raise AssertionError('the signal is upside down')
    return out.to(torch.complex64)


def truth_model(basis, mm):
    "The decoder that makes the spectra: metabolites, one macromolecule signal, lipids"
    acq, names = basis.acquisition, list(basis.names)
    lipids = {k: CLASSICAL[k] for k in ('Lip09', 'Lip13a', 'Lip20')}
    signals = [Signals(basis.fids, names), Signals(mm[None], ('MM',), 'macromolecules'), Signals(line_signals(acq, lipids)*proton_unit(basis), tuple(lipids), 'lipids')]
    mods = [Shift(-30, 30), Lorentzian(0, 100), Gaussian(0, 100), TwoParts(), Phase(), Shift(-9, 9, targets=names), Lorentzian(0, 20, targets=names), Shift(-9, 9, targets=('MM',), name='mm_shift')]
    return Decoder(signals, acq, mods)


def height_at(acq, fid, ppm=0.9):
    near = (acq.ppm_axis() - ppm).abs() < 0.06
    return float(fid_to_spectrum(fid[None])[0].real[near].max())


def make_spectra(basis, mm, n, snr, seed=0, sizes=(2., .4), own_width=(.78, .16)):
    "(FIDs [n, N], true amounts [n, M]); as in mismatch_study, with this macromolecule signal"
    acq, names, g = basis.acquisition, list(basis.names), torch.Generator().manual_seed(seed)
    lines = line_signals(acq, paper_lines(), 'Hz', 'lorentzian').sum(0)*proton_unit(basis)
    mm = mm*height_at(acq, lines)/height_at(acq, mm)
    d, M, mhz = truth_model(basis, mm), len(names), acq.spectrometer_frequency
    normal = lambda mean, sd, size=1: mean + sd*torch.randn(n, size, generator=g)
    uniform = lambda low, high, size=1: low + (high - low)*torch.rand(n, size, generator=g)
    a = amounts(names, n, 'normal', g)
    size, lipids = normal(*sizes).clamp_min(.5), uniform(0., 1., 3)**3*torch.tensor([.6, 3., .6])
    own = math.pi*normal(*own_width, M).clamp_min(0.)
    p = torch.cat([a, size, lipids, uniform(-4., 4.), normal(4., 1.).clamp_min(1.), normal(4., 1.).clamp_min(.5), uniform(1., 4.), uniform(-.3, .3), normal(0., .004*mhz, M), own, normal(0., .008*mhz)], -1)
    assert p.shape[1] == d.layout.size
    only = p.clone()
    only[:, :d.linear] = 0
    only[:, names.index('NAA')] = a[:, names.index('NAA')]
    with torch.no_grad():
        near = (acq.ppm_axis() > 1.8) & (acq.ppm_axis() < 2.2)
        height = d.spectrum(only).abs()[:, near].amax(-1)
        fids = d(p) + random_baseline(acq, n, g)*height[:, None]
    sd = height/snr/math.sqrt(acq.points)
    return fids + torch.view_as_complex(torch.randn(n, acq.points, 2, generator=g)*sd[:, None, None]), a


@contextmanager
def pattern_of(found, preset, least=0.07, most=0.8):
    "The preset with the lines, amounts and spreads of `found` instead of the built-in ones, while it lasts"
    table = {n: [(p, w, s) for k, p, w, s in found['lines'] if k == n] for n in NAMES}
    spread = np.clip(found['spread'], least, most)
    built_in = next(q for q in preset.priors if isinstance(q, PatternPrior))
    prior = replace(built_in, ppm=tuple(table[n][0][0] for n in NAMES), mean=tuple(found['mean']), spread=tuple(spread))
    with patch.dict(deepmrs.macromolecules.PATTERN, table):
        yield replace(preset, priors=tuple(prior if q is built_in else q for q in preset.priors))


def cases(signals, field):
    "(name, FID, what the other signals say) of each measured signal that fits the field"
    basis = simulate_basis(**FIELDS[field])
    basis = basis.select([n for n in basis.names if canonical_name(n) in TYPICAL])
    for name in OF_FIELD[field]:
        if name not in signals: continue
        everything = derive(signals)
        at = list(signals).index(name)
        base = everything['base'][at]
        line = np.polyfit(GRID, base, 1)
        x = np.array([0., 5.])
        broad = 8. if field == 'brain-3t' and not name.endswith('3 T') else 0.
        mm = causal_fid(basis.acquisition, signals[name], everything['shift'][at], (x, np.polyval(line, x)), broad)
        yield name, basis, mm, derive({k: v for k, v in signals.items() if k != name})


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', default='../shared/data')
    p.add_argument('--out', type=Path, default=HERE/'macromolecule_study.csv')
    p.add_argument('--field', default='brain-3t', choices=list(OF_FIELD))
    p.add_argument('--n', type=int, default=24, help='spectra a level')
    p.add_argument('--snr', type=float, nargs='*', default=(30, 60, 100))
    p.add_argument('--kinds', nargs='*', default=KINDS)
    p.add_argument('--choose', nargs='*', default=[], help='choices of the preset, key=value')
    args = p.parse_args()
    warnings.simplefilter('ignore')
    choices = {k: (float(v) if v.replace('.', '').isdigit() else v) for k, _, v in (c.partition('=') for c in args.choose)}
    rows = []
    for name, basis, mm, others in cases(measured_signals(args.data), args.field):
        for snr in args.snr:
            fids, truth = make_spectra(basis, mm, args.n, snr, seed=int(snr))
            for kind in args.kinds:
                preset = get_preset(args.field)
                with pattern_of(others, preset) as held_out:
                    t, seconds = judge(basis, held_out, {'macromolecules': kind} | choices, fids, truth)
                rows.append(t.assign(field=args.field, signal=name, kind=kind, choices=str(choices), snr=snr, spectra=args.n, seconds=seconds))
    table = pd.concat(rows, ignore_index=True)
    if not choices: table.to_csv(args.out, index=False, float_format='%.5g')
    single = table[~table.metabolite.isin(['tNAA', 'tCr', 'tCho', 'Glx'])]
    totals = table[table.metabolite.isin(['tNAA', 'tCr', 'tCho', 'Glx'])].assign(rel=lambda v: v.rmse/v.truth, relbias=lambda v: (v.bias/v.truth).abs())
    keys = ['kind', 'snr']
    out = pd.DataFrame({'mae': single.groupby(keys).mae.mean(), 'GABA': single[single.metabolite == 'GABA'].groupby(keys).mae.mean(), 'GSH': single[single.metabolite == 'GSH'].groupby(keys).mae.mean(),
                        'totals': totals.groupby(keys).rel.mean(), 'tot bias': totals.groupby(keys).relbias.mean(), 'err/sd': table.groupby(keys).error_over_sd.median(), 'cover': table.groupby(keys).coverage95.mean(), 'tot cover': totals.groupby(keys).coverage95.mean(),
                        'per s': 1/table.groupby(keys).seconds.mean()})
    print(args.field, choices)
    print(out.round(3).to_string())
    print(single.groupby(['kind', 'signal']).mae.mean().unstack().round(3).to_string())


if __name__ == '__main__': main()
