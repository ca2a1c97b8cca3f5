"""The bare study: accuracy of fit, network and hybrid on simulated spectra, at three noise levels.

    python nbs/results/bare_study_run.py                                        # fit and the middle of the prior; any CPU, a minute
    python nbs/results/bare_study_run.py --train models --minutes 2             # trains a network for each basis set first (GPU)
    python nbs/results/bare_study_run.py --models models                        # with the networks of an earlier call
    python nbs/results/bare_study_run.py --oracle 1000                          # fit against scipy's least squares, one spectrum at a time

Two basis sets: `simulated`, made here, so that anyone can repeat it, and `paper`, that of Shamaei 2023, if its files are at
../shared/data/seed beside the repository, or in a file that `--pack FILE.npz` made of them (`--basis FILE.npz`). Rows of the CSV files that
are made anew replace the old ones; the others stay.
"""
import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from deepmrs.basis import Basis
from deepmrs.evaluation import error_against, headline, judge, peak_snr, trials
from deepmrs.fitting import fit
from deepmrs.decoder import jacobian
from deepmrs.macromolecules import macromolecules
from deepmrs.model import make_decoder
from deepmrs.simulate import Simulator, paper_priors
from deepmrs.spins import simulate_basis

HERE = Path(__file__).resolve().parent
SEED_FILES = HERE.parents[2]/'shared/data/seed'
NAMES = 'Ala Asp Cr GABA GPC GSH Glc Gln Glu Gly Ins Lac NAA NAAG PCho PCr PE Tau sIns'.split()  # the order of the paper's file
LEVELS = (1.35, 0.45, 0.135)  # noise sd per real number: median SNR of NAA's line 10, 30, 100 (2048 points)
POINTS = 1024  # that fit and network see
SNR = 9.96  # at the first level, in the paper's basis set; the simulated one is scaled to it
MM_OVER_NAA = 0.311  # height of the macromolecules over that of NAA at equal amplitudes, in the paper's basis set
SHOWN = ('NAA', 'Cr', 'Glu', 'GABA')  # amounts whose single estimates are kept for a figure


def simulated_set():
    "(metabolites, macromolecule FID [2048]) simulated here, scaled so that the noise levels mean the same SNR as in the paper's"
    basis = simulate_basis(NAMES, te1=.011, te2=.019, spectrometer_frequency=123.23, points=2048, linewidth=2.)
    mm = macromolecules('summed', basis.acquisition)[0].fids[0]
    height = lambda fid: float(torch.fft.fft(fid).abs().max())
    mm = mm*(MM_OVER_NAA*height(basis['NAA'])/height(mm))
    decoder = make_decoder(basis, preset='none', macromolecules_kind='measured', measured=mm)[0]
    draws = Simulator(decoder, paper_priors(decoder)).sample(4000, torch.Generator().manual_seed(0))
    scale = SNR/float(peak_snr(decoder, draws, LEVELS[0]).median())
    return basis.replace(basis.fids*scale), mm*scale


def paper_set(path=None):
    "(metabolites, macromolecule FID [2048]) of the paper, from a packed file or its own; None without either"
    if path:
        with np.load(path) as f: fids, dwell, frequency = torch.as_tensor(f['fids']), float(f['dwell_time']), float(f['spectrometer_frequency'])
        return Basis(fids[:-1], NAMES, dwell, frequency, echo_time=0.03, source='Shamaei 2023'), fids[-1]
    if not SEED_FILES.exists(): return None
    from deepmrs.io import read_basis, read_paper_mm
    basis = read_basis(SEED_FILES/'basisset.mat', names=NAMES, dwell_time=2.5e-4, spectrometer_frequency=123.23, echo_time=0.03)
    return basis, read_paper_mm(SEED_FILES/'mm.mat', mended=False).fids[0]


def make(basis, mm, points=POINTS):
    "The bare model with one macromolecule signal"
    return make_decoder(basis, basis.acquisition.replace(points=points), 'none', 'measured', measured=mm[:points])[0]


def put(path, new, keys):
    "Write a table; rows of the old one with other values of `keys` stay"
    if path.exists():
        old = pd.read_csv(path)
        fresh = set(map(tuple, new[list(keys)].astype(str).values))
        stay = [tuple(r) not in fresh for r in old[list(keys)].astype(str).values]
        new = pd.concat([old[stay], new], ignore_index=True)
    new.to_csv(path, index=False, float_format='%.6g')
    print(f'{len(new)} rows in {path}', flush=True)


def network(basis, mm, folder, minutes, batch=2048):
    "The paper's ConvNet, trained self-supervised on spectra of all three levels, or loaded"
    from deepmrs.training import load_model, train
    if minutes is None: return load_model(folder)
    tic = time.perf_counter()
    model = train(basis, acquisition=basis.acquisition.replace(points=POINTS), preset='none', macromolecules='measured', measured=mm[:POINTS], priors='paper',
                  noise_sd=(LEVELS[-1], LEVELS[0]), points=POINTS, out=folder, minutes=minutes, max_epochs=10_000, spectra_per_epoch=batch*500, batch_size=batch, schedule='cosine',
                  patience=None, progress=False)
    seen = model.card['training']['spectra_seen']
    print(f'trained on {seen/1e6:.1f} million spectra in {time.perf_counter() - tic:.0f} s, validation loss {model.card["training"]["validation_loss"]:.5f}', flush=True)
    return model


def estimates(trial, snr, keep=300):
    "(single estimates of some spectra, errors against what the spectra differ in) for the figures"
    K, names, lay = trial.decoder.linear, list(trial.decoder.names), trial.decoder.layout.split(trial.truth.cpu())
    truth, value = trial.truth[:, :K].cpu(), trial.fit.params[:, :K].cpu()
    some = [pd.DataFrame({'metabolite': n, 'truth': truth[:keep, k], 'estimate': value[:keep, k], 'sd': trial.fit.sd[:keep, k].cpu()}) for n in SHOWN for k in [names.index(n)]]
    causes = {'snr': snr.cpu(), 'shift': lay['shift'][:, 0].abs(), 'damping': lay['lorentzian'][:, 0], 'phase': lay['phase'][:, 0].abs()}
    against = [error_against(truth, value, v, names).query('metabolite in @SHOWN').assign(variable=c) for c, v in causes.items()]
    return [x.assign(method=trial.method, noise_sd=trial.noise_sd) for x in (pd.concat(some), pd.concat(against)[['metabolite', 'variable', 'centre', 'n', 'truth_mean', 'bias', 'rmse']])]


def run(name, basis, mm, args, device, model=None):
    "The study on one basis set"
    decoder, full = make(basis, mm).to(device), make(basis, mm, 2048).to(device)
    methods = ('fit', 'prior') if model is None else ('fit', 'network', 'hybrid', 'prior')
    if model is not None: model = model.to(device).eval()
    for m in methods[:-1]:  # the first call of anything is slow
        if device != 'cpu': list(trials(decoder, paper_priors(decoder), LEVELS[:1], (m,), args.spectra, model))
    frames, some, against = [], [], []
    where = torch.cuda.get_device_name() if device != 'cpu' else 'CPU'
    for t in trials(decoder, paper_priors(decoder), LEVELS, methods, args.spectra, model, seed=args.seed):
        snr = peak_snr(full, t.truth, t.noise_sd)
        frames.append(judge(t).assign(snr=float(snr.median()), device=where))
        a, b = estimates(t, snr)
        if t.noise_sd == LEVELS[1]: some.append(a)
        against.append(b)
    print(f'{name}\n{headline(pd.concat(frames)).round(4).to_string()}', flush=True)
    return [pd.concat(x).assign(basis=name) for x in (frames, some, against)]


def oracle(decoder, y, x0):
    "Parameters [P] of scipy's bounded least squares, for one FID"
    from scipy.optimize import least_squares
    y = torch.view_as_real(y.to(torch.complex128)).flatten()
    model = lambda v: (torch.view_as_real(decoder(torch.from_numpy(v)[None])[0]).flatten() - y).numpy()
    slope = lambda v: torch.view_as_real(jacobian(decoder, torch.from_numpy(v)[None])[1][0]).flatten(1).T.numpy()
    low, high = decoder.layout.lower().double().numpy(), decoder.layout.upper().double().numpy()
    out = least_squares(model, np.clip(x0, low + 1e-9, high - 1e-9), slope, (low, high), xtol=1e-14, ftol=1e-14, gtol=1e-14, x_scale='jac', max_nfev=300)
    return out.x, out.cost


def against_oracle(name, basis, mm, n, seed):
    "A row a noise level: how far `fit` is from scipy started at the truth, in error bars"
    decoder, rows = make(basis, mm), []
    for sd in LEVELS:
        batch = Simulator(decoder, paper_priors(decoder), sd)(n, torch.Generator().manual_seed(seed + 100))
        tic = time.perf_counter(); f = fit(decoder, batch.fids); took = time.perf_counter() - tic
        tic = time.perf_counter()
        want, cost = zip(*(oracle(decoder, y, x.double().numpy()) for y, x in zip(batch.fids, batch.params)))
        slow = time.perf_counter() - tic
        away = np.abs((f.params.numpy() - np.stack(want))/f.sd.numpy()).max(-1)
        with torch.no_grad(): mine = torch.view_as_real(decoder(f.params) - batch.fids).square().sum((1, 2)).double().numpy()/2
        rows.append({'basis': name, 'noise_sd': sd, 'spectra': n, 'within_0.05': np.mean(away < .05), 'within_0.02': np.mean(away < .02), 'largest': away.max(),
                     'lower_cost_than_scipy': np.mean(mine < np.array(cost)), 'cost_above_scipy': np.max((mine - np.array(cost))/sd**2), 'converged': float(f.converged.double().mean()),
                     'steps': float(f.steps.double().mean()), 'fit_spectra_per_second': n/took, 'scipy_spectra_per_second': n/slow})
        print(pd.Series(rows[-1]).to_string(), flush=True)
    return pd.DataFrame(rows)


def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--out', type=Path, default=HERE/'bare_study.csv', help='the table; figures and oracle get names beside it')
    p.add_argument('--train', type=Path, help='folder for networks to train')
    p.add_argument('--minutes', type=float, default=2., help='of training for each basis set')
    p.add_argument('--models', type=Path, help='folder of networks trained before')
    p.add_argument('--basis', type=Path, help="the paper's basis set as packed by --pack")
    p.add_argument('--only', choices=('simulated', 'paper'), help='one basis set')
    p.add_argument('--pack', type=Path, help="write the paper's basis set and macromolecules to an .npz and stop")
    p.add_argument('--oracle', type=int, help='spectra a level to compare with scipy; does nothing else')
    p.add_argument('--spectra', type=int, default=10_000, help='at each level')
    p.add_argument('--device', default='auto'); p.add_argument('--seed', type=int, default=0)
    args = p.parse_args()
    if args.pack:
        basis, mm = paper_set()
        return np.savez(args.pack, fids=torch.cat([basis.fids, mm[None].to(basis.fids)]).numpy(), dwell_time=2.5e-4, spectrometer_frequency=123.23)
    device = ('cuda' if torch.cuda.is_available() else 'cpu') if args.device == 'auto' else args.device
    sets = {'simulated': simulated_set(), 'paper': paper_set(args.basis)}
    beside = lambda part: args.out.with_name(f'{args.out.stem}_{part}.csv')
    folder = args.train or args.models
    for name, s in sets.items():
        if s is None or args.only not in (None, name): continue
        if args.oracle:
            put(beside('oracle'), against_oracle(name, *s, args.oracle, args.seed), ('basis', 'noise_sd'))
            continue
        model = None if folder is None else network(*s, folder/name, args.minutes if args.train else None)
        frame, some, against = run(name, *s, args, device, model)
        put(args.out, frame, ('basis', 'method', 'noise_sd'))
        put(beside('estimates'), some, ('basis', 'method', 'noise_sd'))
        put(beside('against'), against, ('basis', 'method', 'noise_sd'))


if __name__ == '__main__': main()
