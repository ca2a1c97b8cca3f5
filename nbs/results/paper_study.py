"""The paper's study: its macromolecule models and its encoders, all trained and tested on spectra made with the measured macromolecules.

    python nbs/results/paper_study.py --basis paper.npz --budget-minutes 20 --side-by-side 4     # on a GPU
    python nbs/results/paper_study.py --pack paper.npz                                           # make that file from ../shared/data
    python nbs/results/paper_study.py --list                                                     # what is done, what is missing
    python nbs/results/paper_study.py --limit --basis paper.npz                                  # the Bayes limit, white noise; any CPU, a minute

Rows go to paper_study.csv as they come; what is there already is skipped, so a later call adds what is missing, the most important first.
Each network sees spectra of one kind of noise, white or as the paper's code makes it (fading with the signal), sd 1 per real number, and is
tested on 10,000 spectra, the same for all of one basis set and noise. Beside it stand, on these spectra, `fit` and `hybrid` with the
macromolecules of its own model, and `prior`, the middle of the ranges. RMSE/CRLB is over the bound of the model that made the spectra.

`--limit` writes paper_study_limit.csv: the posterior mean under the ranges from which the spectra were drawn, with the model that made them. No
estimate has a smaller expected squared error. On a GPU its spectra are those of the networks; a CPU's random numbers differ, so there they
are others of the same kind, and `fit` on them, which stands beside, shows how much that matters.
"""
import argparse
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from bare_study_run import NAMES, POINTS, make, paper_set, simulated_set
from deepmrs.model import make_decoder
from deepmrs.posterior import posterior
from deepmrs.runs import compare, make_test_set, model_priors
from deepmrs.simulate import Simulator, paper_priors
from deepmrs.training import train

HERE = Path(__file__).resolve().parent
COLUMNS = ('basis run encoder macromolecules noise noise_sd method metabolite r2 mae mape slope intercept bias rmse_over_crlb rmse_over_prior_sd '
           'spectra_seen precision train_seconds spectra_per_second').split()
KEYS = ['basis', 'run', 'encoder', 'macromolecules', 'noise']
RUNS = {'nMM': 'measured', 'summed': 'summed', 'pMM': 'parametrised', 'rpMM': 'regularised'}
HEAVY = ('mixer', 'convnext')  # bf16, fewer spectra, one at a time
NOISE_SD = 1.
ORDER = ([('paper', 'nMM', 'convnet', n) for n in ('white', 'fading')] + [('simulated', 'nMM', 'convnet', 'white')] + [('paper', r, 'convnet', n) for n in ('white', 'fading') for r in ('summed', 'pMM', 'rpMM')]
         + [('paper', 'nMM', 'mlp', n) for n in ('white', 'fading')] + [('simulated', 'nMM', 'convnet', 'fading')] + [('paper', 'nMM', e, n) for n in ('white', 'fading') for e in HEAVY])


def key(job): return (job[0], job[1], job[2], RUNS[job[1]], job[3])


def done(path): return set() if not path.exists() else set(map(tuple, pd.read_csv(path)[KEYS].astype(str).values))


def model_decoder(name, basis, mm, run):
    "The model's decoder; the paper's mm.mat is used as stored, 0.05 ppm too low, and so the lines stand there too"
    if run == 'nMM': return make(basis, mm), 'measured'
    kind = {'kind': RUNS[run], 'paper_axis': name == 'paper'}
    return make_decoder(basis, basis.acquisition.replace(points=POINTS), 'none', kind)[0], kind


def work(job, args):
    "Train and test one network; a table with the columns of the study"
    name, run, encoder, noise = job
    basis, mm = simulated_set() if name == 'simulated' else paper_set(args.basis)
    device, maker, (decoder, kind) = torch.device('cuda' if torch.cuda.is_available() else 'cpu'), make(basis, mm), model_decoder(name, basis, mm, run)
    simulator, heavy = Simulator(maker, paper_priors(maker), NOISE_SD, noise), encoder in HEAVY
    count, batch = (args.heavy_spectra if heavy else args.spectra), args.batch
    epoch = batch*max(min(count//batch//20, 500), 1)
    extra = {'reg_weight': 3.} if run == 'rpMM' else {}
    tic = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        model = train(basis, acquisition=maker.acquisition, preset='none', macromolecules=kind, measured=mm[:POINTS], priors=model_priors(simulator.priors, decoder, maker), simulator=simulator,
                      encoder=encoder, points=POINTS, normalise='none', out=folder, batch_size=batch, spectra_per_epoch=epoch, max_epochs=max(round(count/epoch), 1), schedule='cosine',
                      learning_rate=5e-4 if heavy else 2e-3, clip=1. if heavy else None, precision='bf16' if heavy else '32', patience=None, progress=False, log_every=200, validation=min(args.tests, 4096), **extra)
    seconds = time.perf_counter() - tic
    model, decoder = model.to(device), decoder.to(device)
    simulator.decoder.to(device)
    tests = make_test_set(simulator, args.tests, points=POINTS)
    methods = ('network', 'hybrid', 'fit', 'prior')
    if device.type == 'cuda': compare(tests, decoder, model, methods)  # the first call of anything is slow
    table, _ = compare(tests, decoder, model, methods)
    learnt = table.method.isin(['network', 'hybrid'])
    table = table.assign(basis=name, run=run, encoder=encoder, macromolecules=RUNS[run], spectra_seen=np.where(learnt, model.card['training']['spectra_seen'], np.nan),
                         precision=np.where(learnt, 'bf16' if heavy else '32', ''), train_seconds=np.where(learnt, round(seconds, 1), np.nan))
    print(f'{"/".join(job)}: {model.card["training"]["spectra_seen"]/1e6:.1f} million spectra in {seconds:.0f} s, validation loss {model.card["training"]["validation_loss"]:.5f}; median RMSE/CRLB '
          + ', '.join(f'{m} {v:.3f}' for m, v in table.groupby('method', sort=False).rmse_over_crlb.median().items()), flush=True)
    return table[COLUMNS]


def limit(name, args):
    "The posterior mean, and the fit, on the test spectra of one basis set with white noise; a table with the columns of the study and `data_share`"
    basis, mm = simulated_set() if name == 'simulated' else paper_set(args.basis)
    device, decoder = torch.device('cuda' if torch.cuda.is_available() else 'cpu'), make(basis, mm)
    simulator = Simulator(decoder, paper_priors(decoder), NOISE_SD)
    simulator.decoder.to(device)
    tests = make_test_set(simulator, args.tests, points=POINTS)
    table, fits = compare(tests, decoder, None, ('fit',))
    tic = time.perf_counter()
    post = posterior(decoder, tests.seen, fits['fit'], prior=paper_priors(decoder))
    seconds = time.perf_counter() - tic + table.seconds.iloc[0]
    if not bool(post.converged.all()): print(f'{name}: {int((~post.converged).sum())} of {args.tests} posteriors have not converged', flush=True)
    share = dict(zip(decoder.names, post.data_share.median(0).values.tolist()))
    best, _ = compare(tests, decoder, None, (), answers={'limit': post.mean[:, :decoder.linear]})
    best = best.assign(spectra_per_second=args.tests/seconds, data_share=best.metabolite.map(share))
    rows = pd.concat([best, table], ignore_index=True).assign(basis=name, run='nMM', encoder='none', macromolecules=RUNS['nMM'], spectra_seen=np.nan, precision='', train_seconds=np.nan)
    print(f'{name}: {args.tests:,} spectra, {args.tests/seconds:,.0f} a second ({device}); median RMSE/sd of the prior: ' + ', '.join(f'{m} {v:.3f}' for m, v in rows.groupby('method').rmse_over_prior_sd.median().items()), flush=True)
    return rows[[*COLUMNS, 'data_share']]


def append(path, new):
    "Add rows; rows of the same networks are replaced"
    if path.exists():
        old = pd.read_csv(path)
        fresh = set(map(tuple, new[KEYS].astype(str).values))
        new = pd.concat([old[[tuple(r) not in fresh for r in old[KEYS].astype(str).values]], new], ignore_index=True)
    part = path.with_suffix('.part')
    new.to_csv(part, index=False, float_format='%.6g')
    part.replace(path)


def launch(job, args, until):
    "Do one job in a process of its own; its rows, or None with a reason printed"
    left = until - time.monotonic()
    if left < 5: return print(f'{"/".join(job)}: no time left', flush=True)
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder)/'part.csv'
        same = ['--spectra', args.spectra, '--heavy-spectra', args.heavy_spectra, '--batch', args.batch, '--tests', args.tests] + (['--basis', args.basis] if args.basis else [])
        try: end = subprocess.run([sys.executable, __file__, '--only', '/'.join(job), *map(str, ['--out', part, *same])], timeout=left, text=True, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
        except subprocess.TimeoutExpired: return print(f'{"/".join(job)}: stopped, the budget is spent', flush=True)
        if end.returncode or not part.exists(): return print(f'{"/".join(job)}: failed\n{(end.stderr or "")[-1500:]}', flush=True)
        return pd.read_csv(part)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--out', type=Path, help='default paper_study.csv (paper_study_limit.csv) beside this script')
    p.add_argument('--basis', help="the paper's basis set as packed by --pack; default its own files, if they are there")
    p.add_argument('--pack', type=Path, help="write the paper's basis set and macromolecules to an .npz and stop")
    p.add_argument('--list', action='store_true', help='say what is missing and stop')
    p.add_argument('--only', help='one network, basis/run/encoder/noise, in this process')
    p.add_argument('--limit', action='store_true', help='the Bayes limit instead of networks, to paper_study_limit.csv')
    p.add_argument('--budget-minutes', type=float, default=20.)
    p.add_argument('--side-by-side', type=int, default=1, help='light networks trained at a time')
    p.add_argument('--spectra', type=int, default=20_000_000); p.add_argument('--heavy-spectra', type=int, default=5_000_000, help='for mixer and convnext')
    p.add_argument('--batch', type=int, default=2048); p.add_argument('--tests', type=int, default=10_000)
    args = p.parse_args()
    args.basis = args.basis and str(Path(args.basis).resolve())
    args.out = args.out or HERE/('paper_study_limit.csv' if args.limit else 'paper_study.csv')
    if args.pack:
        basis, mm = paper_set()
        return np.savez(args.pack, fids=torch.cat([basis.fids, mm[None].to(basis.fids)]).numpy(), names=NAMES + ['MM'], dwell_time=2.5e-4, spectrometer_frequency=123.23)
    if args.only:
        job = tuple(args.only.split('/'))
        if job not in ORDER: raise SystemExit(f'There is no network {args.only}; there are {", ".join("/".join(j) for j in ORDER)}.')
        return append(args.out, work(job, args))
    paper = bool(args.basis) or paper_set() is not None
    if args.limit:
        for name in ('paper', 'simulated') if paper else ('simulated',): append(args.out, limit(name, args))
        return
    have = done(args.out)
    todo = [j for j in ORDER if key(j) not in have and (paper or j[0] != 'paper')]
    if not paper: print("The paper's basis set is not there (give --basis); only the simulated one is used.")
    if args.list: return print('missing:', *('/'.join(j) for j in todo), sep='\n  ')
    until = time.monotonic() + 60*args.budget_minutes
    lanes = [[j for j in todo if j[2] not in HEAVY], [j for j in todo if j[2] in HEAVY]]
    for jobs, width in zip(lanes, (args.side_by_side, 1)):
        with ThreadPoolExecutor(max(width, 1)) as pool:
            for table in pool.map(lambda j: launch(j, args, until), jobs):
                if table is not None: append(args.out, table)
    print(f'{len(done(args.out))} of {len(ORDER)} networks in {args.out}')


if __name__ == '__main__': main()
