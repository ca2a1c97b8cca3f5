"""The same brain measured 200 times: does what is reported vary as much as the error bars say?

    python nbs/results/repeat_study.py [--model default] [--n 200]      # rows go to repeat_study.csv

One simulated spectrum of a healthy brain, with 200 draws of the noise alone, and of noise, shift (± 4 Hz) and phase (± 0.3 rad). `spread` is the sd of the estimates over the
draws, `stated` the median error bar, `bias` the mean error over the spread; for fit, hybrid and network.
"""
import argparse
from pathlib import Path

import pandas as pd
import torch

from deepmrs.demo import healthy_priors
from deepmrs.quantify import estimate
from deepmrs.simulate import Simulator, Uniform
from deepmrs.training import load_model
from train_default import noise_for_snr

HERE = Path(__file__).resolve().parent


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--model', default='default')
    p.add_argument('--n', type=int, default=200)
    p.add_argument('--snr', type=float, nargs='*', default=(10, 30, 100))
    p.add_argument('--out', type=Path, default=HERE/'repeat_study.csv')
    args = p.parse_args()
    model = load_model(args.model).to('cuda' if torch.cuda.is_available() else 'cpu')
    d, rows = model.decoder, []
    g = torch.Generator(d.fids.device).manual_seed(1)
    truth = Simulator(d, healthy_priors(d)).sample(1, g, d.fids.device).repeat(args.n, 1)
    moved = truth.clone()
    for k, width in (('shift', 4.), ('phase', .3)): moved[:, d.layout.slices[k]] = width*(2*torch.rand(args.n, 1, generator=g, device=d.fids.device) - 1)
    M = len(d.signals[0].names)
    for what, params in (('noise', truth), ('noise, shift, phase', moved)):
        with torch.no_grad(): clean = torch.cat([d(x) for x in params.split(50)])
        for snr in args.snr:
            fids = clean + noise_for_snr(snr)*torch.view_as_complex(torch.randn(*clean.shape, 2, generator=g, device=clean.device))
            for method in ('fit', 'hybrid', 'network'):
                f = estimate(d, fids, method, model.preset.window, model)
                x, t = f.params[:, :M], truth[0, :M].double()
                for k, name in enumerate(d.signals[0].names):
                    rows.append(dict(draws=what, snr=snr, method=method, metabolite=name, truth=float(t[k]), mean=float(x[:, k].mean()), spread=float(x[:, k].std()), stated=float(f.sd[:, k].median()),
                                     inside95=float(((x[:, k] - t[k]).abs() < 1.96*f.sd[:, k]).double().mean())))
                here = pd.DataFrame(rows[-M:])
                print(f'{what:20s} SNR {snr:5g} {method:8s} spread/stated: median {(here.spread/here.stated).median():.2f}, {(here.spread/here.stated).min():.2f} to {(here.spread/here.stated).max():.2f}; inside 95 %: {here.inside95.median():.2f}', flush=True)
    pd.DataFrame(rows).to_csv(args.out, index=False, float_format='%.5g')


if __name__ == '__main__': main()
