"""How good are the presets on spectra that no preset describes exactly?

    python nbs/results/mismatch_study.py                       # the presets as they are, all levels; rows go to mismatch_study.csv (those stored: version 2; of version 3: mismatch_study_version3.csv)
    python nbs/results/mismatch_study.py --choices             # the choices that were tried on the way to them
    python nbs/results/mismatch_study.py --only "brain-3t" --n 50 --snr 30

The spectra: simulated metabolites, each with a shift (sd 0.004 ppm) and a broadening (0.78 ± 0.16 Hz) of its own, lines 4 Hz wide that are neither Lorentzian nor
Gaussian (two unequal parts of the voxel, a few Hz apart), macromolecules of another kind than the model's (the 18 Lorentzian lines of Shamaei 2023, each varied by 15 %),
lipids, a random smooth baseline, white noise. SNR is the height of NAA's own line over the sd of the spectral noise. Amounts are drawn from normal ranges (a healthy
brain's, ± 20 %) and from uniform ones, from next to nothing to twice as much. The same spectra for all.
"""
import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from deepmrs.core import canonical_name, spectrum_to_fid
from deepmrs.decoder import Decoder, Gaussian, Lorentzian, Modulation, Phase, Shift, Signals
from deepmrs.fitting import fit
from deepmrs.macromolecules import CLASSICAL, line_signals, paper_lines
from deepmrs.model import adapt, make_decoder, proton_unit
from deepmrs.simulate import BRAIN_RANGES
from deepmrs.spins import simulate_basis

HERE = Path(__file__).resolve().parent
LEVELS = (10, 30, 60, 100)
KINDS = ('normal', 'uniform')
TYPICAL = {'NAA': 10., 'NAAG': 1.3, 'Cr': 4.5, 'PCr': 3.5, 'Glu': 9., 'Gln': 2.5, 'Ins': 6., 'GPC': 1., 'PCho': .5, 'GABA': 1.3, 'GSH': 1.4, 'Tau': 1.3, 'Asp': 2., 'Lac': .7, 'Ala': .4, 'Glc': 1.,
           'PE': 1.3, 'Asc': 1., 'sIns': .3, 'Gly': .6}  # mmol/kg
TOTALS = {'tNAA': ('NAA', 'NAAG'), 'tCr': ('Cr', 'PCr'), 'tCho': ('GPC', 'PCho'), 'Glx': ('Glu', 'Gln')}
FIELDS = {'brain-3t': dict(sequence='press', te1=.011, te2=.019, spectrometer_frequency=123.25, dwell_time=2.5e-4, points=2048),
          'brain-7t': dict(sequence='press', te1=.011, te2=.019, spectrometer_frequency=297.2, dwell_time=1.667e-4, points=4096),
          'rodent-9.4t': dict(sequence='press', te1=.006, te2=.010, spectrometer_frequency=400.2, dwell_time=2e-4, points=4096)}
CHOICES = [('brain-3t', c) for c in (
    dict(), dict(own_shift='off', own_lorentzian='off'), dict(own_lorentzian='off'), dict(own_shift=.002), dict(own_shift=.008), dict(own_lorentzian=.3), dict(groups=[]),
    dict(lineshape='off'), dict(lineshape='asymmetric'), dict(baseline='stiff'), dict(baseline='flexible'), dict(baseline='auto'), dict(macromolecules='classical'),
    dict(macromolecules='classical', lineshape='off', own_shift='off', own_lorentzian='off'), dict(ratios='off'), dict(first_order_phase='off'))]


class TwoParts(Modulation):
    "Two parts of a voxel, three quarters and one, θ Hz apart: a skewed line that no term of the models is"
    name, unit = 'two_parts', 'Hz'
    def exponent(self, theta, axis):
        shape = .75*torch.exp(-.5j*math.pi*theta*axis) + .25*torch.exp(1.5j*math.pi*theta*axis)
        return torch.log(shape)


def truth_model(basis):
    "The decoder that makes the spectra; its macromolecules are one signal that varies by a mixture drawn beforehand"
    acq, names = basis.acquisition, list(basis.names)
    unit, lines = proton_unit(basis), paper_lines()
    mm = [Signals(line_signals(acq, {k: v}, 'Hz', 'lorentzian')*unit, (k,), k) for k, v in lines.items()]
    lipids = {k: CLASSICAL[k] for k in ('Lip09', 'Lip13a', 'Lip20')}
    mm.append(Signals(line_signals(acq, lipids)*unit, tuple(lipids), 'lipids'))
    mods = [Shift(-30, 30), Lorentzian(0, 100), Gaussian(0, 100), TwoParts(), Phase(), Shift(-9, 9, targets=names), Lorentzian(0, 20, targets=names)]
    return Decoder([Signals(basis.fids, names), *mm], acq, mods)


def amounts(names, n, kind, g):
    "True amounts [n, M] in mmol/kg"
    typical = torch.tensor([TYPICAL[canonical_name(k)] for k in names])
    if kind == 'normal': return typical*(1 + .2*torch.randn(n, len(names), generator=g)).clamp_min(.2)
    low, high = (torch.tensor(v) for v in zip(*(BRAIN_RANGES[canonical_name(k)] for k in names)))
    return low + (high - low)*torch.rand(n, len(names), generator=g)


def make_spectra(basis, n, snr, kind='normal', seed=0):
    "(FIDs [n, N], true amounts [n, M], noise sd [n])"
    d, g, names = truth_model(basis), torch.Generator().manual_seed(seed), list(basis.names)
    lay, acq, M = d.layout, basis.acquisition, len(names)
    normal = lambda mean, sd, size=1: mean + sd*torch.randn(n, size, generator=g)
    uniform = lambda low, high, size=1: low + (high - low)*torch.rand(n, size, generator=g)
    a = amounts(names, n, kind, g)
    size = normal(2., .4).clamp_min(.5) if kind == 'normal' else uniform(.5, 4.)  # 2: MM09 is an eighth as high as NAA
    lines = size*normal(1., .15, len(paper_lines())).clamp_min(.3)
    lipids = uniform(0., 1., 3)**3*torch.tensor([.6, 3., .6])
    wide = {'lorentzian': normal(4., 1.).clamp_min(1.), 'gaussian': normal(4., 1.).clamp_min(.5), 'two_parts': uniform(1., 4.)}
    p = torch.cat([a, lines, lipids, uniform(-4., 4.), wide['lorentzian'], wide['gaussian'], wide['two_parts'], uniform(-.3, .3), normal(0., .004*acq.spectrometer_frequency, M),
                   math.pi*normal(.78, .16, M).clamp_min(0.)], -1)
    assert p.shape[1] == lay.size
    with torch.no_grad():
        fids = torch.cat([d(q) for q in p.split(50)])
        only = p.clone()
        only[:, :d.linear] = 0
        only[:, names.index('NAA')] = a[:, names.index('NAA')]
        near = (acq.ppm_axis() > 1.8) & (acq.ppm_axis() < 2.2)
        height = torch.cat([d.spectrum(q) for q in only.split(50)]).abs()[:, near].amax(-1)
    fids = fids + random_baseline(acq, n, g)*height[:, None]
    sd = height/snr/math.sqrt(acq.points)
    return fids + torch.view_as_complex(torch.randn(n, acq.points, 2, generator=g)*sd[:, None, None]), a, sd


def random_baseline(acq, n, g, size=.15):
    "FIDs [n, N] whose spectra are smooth over 0.4 ppm and some 0.15 in size"
    x = acq.ppm_axis()
    centres = torch.linspace(-.5, 5, 24)
    bumps = torch.exp(-((x - centres[:, None])/.4)**2/2)
    weight = torch.view_as_complex(torch.randn(n, 24, 2, generator=g))*torch.rand(n, 1, generator=g)*size/2
    return spectrum_to_fid(weight @ bumps.to(weight.dtype))


def with_totals(names, values, cov=None):
    "(names, values, sds) with the totals appended"
    names, rows = list(names), []
    for parts in TOTALS.values(): rows.append([float(canonical_name(k) in parts) for k in names])
    A = torch.cat([torch.eye(len(names)), torch.tensor(rows)]).double()
    sd = None if cov is None else torch.einsum('ij,bjk,ik->bi', A, cov, A).clamp_min(0).sqrt()
    return names + list(TOTALS), values.double() @ A.T, sd


def judge(basis, preset, choices, fids, truth):
    "(table with a row for each metabolite, seconds a spectrum) of a preset on these spectra"
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    d, used, _ = make_decoder(basis, preset=adapt(preset, **choices))
    d, fids = d.to(device), fids.to(device)
    fit(d, fids[:2], window=used.window)
    tic = time.perf_counter()
    f = fit(d, fids, window=used.window).each(torch.Tensor.cpu)
    seconds = (time.perf_counter() - tic)/len(fids)
    M = len(basis.names)
    names, x, sd = with_totals(basis.names, f.params[:, :M], f.covariance[:, :M, :M])
    _, t, _ = with_totals(basis.names, truth)
    e = x - t
    z = e/sd.clamp_min(1e-12)
    return pd.DataFrame(dict(metabolite=names, truth=t.mean(0), rmse=e.square().mean(0).sqrt(), bias=e.mean(0), mae=e.abs().mean(0), error_over_sd=z.square().median(0).values.sqrt()/.6745,
                             coverage95=(z.abs() < 1.96).double().mean(0), converged=f.converged.double().mean().item())).assign(relative=lambda v: v.rmse/v.truth), seconds


def put(path, table):
    "Add rows to the file; rows of the same case are replaced"
    if path.exists(): table = pd.concat([pd.read_csv(path), table]).drop_duplicates(['preset', 'choices', 'amounts', 'snr', 'metabolite'], keep='last')
    table.to_csv(path, index=False, float_format='%.5g')


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--out', type=Path, default=HERE/'mismatch_study.csv')
    p.add_argument('--n', type=int, default=100, help='spectra a level')
    p.add_argument('--snr', type=float, nargs='*', default=LEVELS)
    p.add_argument('--choices', action='store_true', help='the choices tried for brain-3t, too')
    p.add_argument('--only', help='a preset, or a preset and choices as JSON: brain-3t {"baseline": "stiff"}')
    args = p.parse_args()
    jobs = [(k, {}) for k in FIELDS] + (CHOICES[1:] if args.choices else [])
    if args.only: jobs = [(args.only.partition(' ')[0], json.loads(args.only.partition(' ')[2] or '{}'))]
    tables = []
    for preset in dict.fromkeys(j[0] for j in jobs):
        basis = simulate_basis(**FIELDS[preset])
        basis = basis.select([n for n in basis.names if canonical_name(n) in TYPICAL])
        for kind in KINDS:
            for snr in args.snr:
                fids, truth, _ = make_spectra(basis, args.n, snr, kind, seed=int(snr))
                for name, choices in (j for j in jobs if j[0] == preset):
                    t, seconds = judge(basis, name, choices, fids, truth)
                    label = ', '.join(f'{k} {v}' for k, v in choices.items()) or 'as it is'
                    if args.only is None and tables: put(args.out, pd.concat(tables, ignore_index=True))
                    tables.append(t.assign(preset=name, choices=label, amounts=kind, snr=snr, spectra=args.n, seconds=seconds))
                    print(f'{name:12s} {label:40s} {kind:8s} SNR {snr:5g}: error {t.relative.median():.3f}, totals {t.relative[-4:].mean():.3f}, bias of totals {(t.bias/t.truth)[-4:].abs().mean():.3f}, '
                          f'error/bar {t.error_over_sd.median():.2f}, coverage {t.coverage95.median():.2f}, {1/seconds:.0f}/s', flush=True)
    if args.only is None: put(args.out, pd.concat(tables, ignore_index=True))


if __name__ == '__main__': main()
