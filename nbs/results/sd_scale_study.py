"""Do error bars hold on spectra that the preset does not describe, once `sd_scale` is in them?

    python nbs/results/sd_scale_study.py            # 40 spectra a level; rows go to sd_scale_study.csv
    python nbs/results/sd_scale_study.py --preset brain-7t

The spectra of `mismatch_study.py` at SNR 10 to 200, and spectra that the preset made with the wide amounts and baselines that
networks are trained on (`priors of training`), which its own ratio priors don't expect. One row a level: rms of error over error bar (all amounts and the four totals) and
the share of amounts within 1.96 error bars, by the Cramér-Rao bound alone and with `sd_scale`.
"""
import argparse
from pathlib import Path

import pandas as pd
import torch

import mismatch_study as mismatch
from deepmrs.core import canonical_name
from deepmrs.fitting import fit
from deepmrs.model import make_decoder
from deepmrs.simulate import Simulator, brain_priors
from deepmrs.trust import leftover

HERE = Path(__file__).resolve().parent


def row(decoder, window, names, fids, truth):
    "Measures of one level as a dict"
    f = fit(decoder, fids, window=window)
    left, M = leftover(decoder, fids, f, window), len(names)
    _, x, sd = mismatch.with_totals(names, f.params[:, :M], f.covariance[:, :M, :M])
    _, t, _ = mismatch.with_totals(names, truth)
    out = {}
    for name, bar in (('bound', sd), ('scaled', sd*left.sd_scale[:, None])):
        z = (x - t)/bar
        out |= {f'rms_{name}': z.square().mean().sqrt().item(), f'rms_totals_{name}': z[:, -4:].square().mean().sqrt().item(),
                f'coverage_{name}': (z.abs() < 1.96).double().mean().item(), f'coverage_totals_{name}': (z[:, -4:].abs() < 1.96).double().mean().item()}
    return out | {'misfit': left.misfit.median().item(), 'correlation': left.correlation.median().item(), 'sd_scale': left.sd_scale.median().item()}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--out', type=Path, default=HERE/'sd_scale_study.csv')
    p.add_argument('--n', type=int, default=40, help='spectra a level')
    p.add_argument('--preset', default='brain-3t')
    args = p.parse_args()
    basis = mismatch.simulate_basis(**mismatch.FIELDS[args.preset])
    basis = basis.select([n for n in basis.names if canonical_name(n) in mismatch.TYPICAL])
    decoder, used, _ = make_decoder(basis, preset=args.preset)
    rows = []
    for snr in (10, 30, 60, 100, 200):
        for kind in mismatch.KINDS:
            fids, truth, _ = mismatch.make_spectra(basis, args.n, snr, kind, seed=snr)
            rows.append({'preset': args.preset, 'spectra': f'mismatch, {kind}', 'snr': snr} | row(decoder, used.window, basis.names, fids, truth))
        made = Simulator(decoder, brain_priors(decoder), noise_sd=60./snr)(2*args.n, torch.Generator().manual_seed(snr))
        rows.append({'preset': args.preset, 'spectra': 'priors of training', 'snr': snr} | row(decoder, used.window, basis.names, made.fids, made.params[:, :len(basis.names)]))
        table = pd.DataFrame(rows)
        table.to_csv(args.out, index=False, float_format='%.4g')
    print(table.round(3).to_string())


if __name__ == '__main__': main()
