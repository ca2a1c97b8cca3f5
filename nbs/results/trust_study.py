"""What the network does with spectra that it was not trained for, what hybrid makes of them, and whether the flag sees it.

    python nbs/results/trust_study.py [--model default] [--n 1000]      # rows go to trust_study.csv

Each scenario changes one thing of the spectra that the model was trained on. `catch` is the share of spectra, among those where some amount of the network lies more than 3
error bars from the converged fit, that the flag of method network names; `false_alarm` the share that it names among the others. RMSE over truth, for network, hybrid and fit.
"""
import argparse
import math
import time
from pathlib import Path

import pandas as pd
import torch

from deepmrs.fitting import fit
from deepmrs.simulate import Correlated, Normal, Simulator, Uniform, brain_priors
from deepmrs.training import load_model
from deepmrs.trust import FAR, hybrid_fit, network_fit, off_by
from train_default import noise_for_snr

HERE = Path(__file__).resolve().parent
LEVELS = (10, 30, 100)


def wider(d, factor):
    "A prior with `factor` times the values"
    if isinstance(d, Uniform): return Uniform(d.low*factor, d.high*factor)
    return Normal(d.mean*factor, d.sd*factor) if isinstance(d, Normal) else Correlated(d.factor*factor)


def unknown_peak(decoder):
    "An artefact: a line that no basis signal has, up to half as high as NAA, anywhere between 1 and 3.8 ppm"
    acq = decoder.acquisition
    def add(fids, batch, generator):
        n, u = len(fids), lambda: torch.rand(len(fids), 1, generator=generator, device=fids.device)
        t = torch.arange(fids.shape[1], device=fids.device)*acq.dwell_time
        hz = (1 + 2.8*u() - acq.centre_ppm)*acq.spectrometer_frequency
        return fids + (10 + 10*u())*torch.exp(2j*math.pi*(hz*t + u()) - 20*t)
    return add


def scenarios(decoder):
    "name → (priors, artefacts)"
    p = brain_priors(decoder)
    high = p['amplitudes'].high
    nothing = {k: Uniform(torch.zeros_like(d.mean), torch.zeros_like(d.mean)) for k, d in p.items() if k in ('amplitudes', 'macromolecules', 'baseline')}
    return {'in distribution': (p, ()), 'linewidth ×2': (p | {k: wider(p[k], 2.) for k in ('lorentzian', 'gaussian')}, ()), 'shift ×4': (p | {'shift': wider(p['shift'], 4.)}, ()),
            'phase ±2 rad': (p | {'phase': Uniform(-2., 2.)}, ()), 'baseline ×4': (p | {'baseline': wider(p['baseline'], 4.)}, ()), 'unknown peak': (p, (unknown_peak(decoder),)),
            'amounts outside': (p | {'amplitudes': Uniform(high, 2*high)}, ()), 'pure noise': (p | nothing, ())}


def one(model, priors, artefacts, snr, n, seed=0):
    "A row of results"
    d, window = model.decoder, model.preset.window
    device = d.fids.device
    b = Simulator(d, priors, noise_for_snr(snr), artefacts=artefacts)(n, torch.Generator(device).manual_seed(seed))
    start, M, times = model(b.fids), len(d.signals[0].names), {}
    def timed(name, f):
        tic = time.perf_counter()
        out = f()
        if device.type == 'cuda': torch.cuda.synchronize()
        times[name] = (time.perf_counter() - tic)/n
        return out
    net, seen = timed('network', lambda: network_fit(d, b.fids, start, window))
    hyb, trust = timed('hybrid', lambda: hybrid_fit(d, b.fids, start, model.head.sd, window))
    ref = timed('fit', lambda: fit(d, b.fids, window=window))
    far, truth = off_by(start, ref, d.linear) > FAR, b.params[:, :M].double()
    rmse = {k: (f.params[:, :M] - truth).square().mean(0).sqrt() for k, f in (('network', net), ('hybrid', hyb), ('fit', ref))}
    ratio = rmse['hybrid']/rmse['fit'].clamp_min(1e-12)
    share = lambda flags, of: float(flags[of].double().mean()) if bool(of.any()) else math.nan
    spread = lambda v: float((v/truth.mean(0).clamp_min(1e-9) if truth.mean() > 0 else v).median())
    return dict(snr=snr, spectra=n, far=share(far, torch.ones_like(far)), catch=share(seen.flagged, far), false_alarm=share(seen.flagged, ~far), catch_hybrid=share(trust.flagged, far), refitted=share(trust.refitted, torch.ones_like(far)),
                hybrid_over_fit_median=float(ratio.median()), hybrid_over_fit_worst=float(ratio.max()), hybrid_over_fit_total=float(rmse['hybrid'].square().sum().sqrt()/rmse['fit'].square().sum().sqrt()),
                error_network=spread(rmse['network']), error_hybrid=spread(rmse['hybrid']), error_fit=spread(rmse['fit']),
                coverage_fit=float((((ref.params - b.params)/ref.sd)[:, :M].abs() < 1.96).double().mean()), converged_hybrid=float(hyb.converged.double().mean()), converged_fit=float(ref.converged.double().mean()),
                **{f'per_second_{k}': 1/v for k, v in times.items()})


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--model', default='default')
    p.add_argument('--n', type=int, default=1000)
    p.add_argument('--snr', type=float, nargs='*', default=LEVELS)
    p.add_argument('--scenarios', nargs='*')
    p.add_argument('--out', type=Path, default=HERE/'trust_study.csv')
    args = p.parse_args()
    model = load_model(args.model).to('cuda' if torch.cuda.is_available() else 'cpu')
    rows = []
    for name, (priors, artefacts) in scenarios(model.decoder).items():
        if args.scenarios and name not in args.scenarios: continue
        for snr in args.snr:
            rows.append({'scenario': name, **one(model, priors, artefacts, snr, args.n)})
            print(', '.join(f'{k} {v:.3g}' if isinstance(v, float) else f'{k} {v}' for k, v in rows[-1].items()), flush=True)
    pd.DataFrame(rows).to_csv(args.out, index=False, float_format='%.5g')


if __name__ == '__main__': main()
