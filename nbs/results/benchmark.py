"""Spectra a second of fit, network and hybrid, on one CPU core and on the GPU if there is one.

    python nbs/results/benchmark.py                       # fit; network with the weights it is born with (speed does not care)
    python nbs/results/benchmark.py --models models       # networks trained by bare_study_run.py: hybrid too
    python nbs/results/benchmark.py --only brain-3t --device cuda
    python nbs/results/benchmark.py --simulate            # how fast noisy spectra of 1,024 points are made, nothing else

`bare`: 19 metabolites and macromolecules, one shift, damping, phase, 1,024 points; white noise, SNR of NAA 30. `brain-3t`: the complete model
with baseline, 2,048 points, the model that comes with deepmrs. fit: start, steps to convergence, covariance. network: amounts and error bars;
`network, amounts alone`: without. Data lie on the device before the clock starts; it stops when the device is done.
"""
import argparse
import platform
import time
from pathlib import Path
from statistics import median

import pandas as pd
import torch

from bare_study_run import HERE, LEVELS, make, put, simulated_set
from deepmrs.core import InputError
from deepmrs.model import make_decoder
from deepmrs.quantify import estimate
from deepmrs.simulate import Simulator, brain_priors, paper_priors
from deepmrs.spins import simulate_basis
from deepmrs.training import build_model, load_model


def cpu_name():
    "Model name of the processor"
    try: return next(l.split(':', 1)[1].strip() for l in Path('/proc/cpuinfo').read_text().splitlines() if l.startswith('model name'))
    except (OSError, StopIteration): return platform.processor() or platform.machine()


def bare(models):
    "(decoder, window, simulator, model, is it trained?)"
    basis, mm = simulated_set()
    decoder = make(basis, mm)
    sim = Simulator(decoder, paper_priors(decoder), LEVELS[1])
    if models is not None: return decoder, None, sim, load_model(models/'simulated'), True
    return decoder, None, sim, build_model(decoder, 'paper', LEVELS[1])[0].eval(), False


def brain(models):
    "(decoder, window, simulator, model, is it trained?)"
    try: model, trained = load_model('default'), True
    except InputError:
        decoder, preset, _ = make_decoder(simulate_basis(te1=.011, te2=.019))
        model, trained = build_model(decoder, preset=preset)[0].eval(), False
    decoder = model.decoder
    return decoder, model.preset.window, Simulator(decoder, brain_priors(decoder), 2.), model, trained


def clock(call, fids, repeats):
    "(median, best) seconds of a call, warmed up; a GPU is waited for"
    wait = torch.cuda.synchronize if fids.is_cuda else (lambda: None)
    seconds, out = [], None
    for i in range(repeats + 1):
        out = None  # gives its memory back
        wait(); tic = time.perf_counter()
        with torch.no_grad(): out = call(fids)
        wait()
        if i: seconds.append(time.perf_counter() - tic)
    return median(seconds), min(seconds), out


def measure(name, case, device, spectra, repeats):
    "Rows of the table for one model on one device"
    decoder, window, sim, model, trained = case
    decoder, model = decoder.to(device), model.to(device)
    fids = sim(spectra, torch.Generator(device).manual_seed(1)).fids
    calls = {m: (lambda y, m=m: estimate(decoder, y, m, window, model)) for m in ('fit', 'network', 'hybrid') if trained or m != 'hybrid'}
    calls['network, amounts alone'] = model
    rows = []
    for method, call in calls.items():
        seconds, best, out = clock(call, fids, repeats)
        checked = method in ('fit', 'hybrid')
        rows.append({'device': torch.cuda.get_device_name() if device == 'cuda' else cpu_name(), 'cores': torch.get_num_threads() if device == 'cpu' else 0, 'model': name,
                     'points': fids.shape[-1], 'amplitudes': decoder.linear, 'parameters': decoder.layout.size, 'method': method, 'spectra': spectra, 'seconds': seconds,
                     'spectra_per_second': round(spectra/seconds), 'best': round(spectra/best), 'converged': float(out.converged.double().mean()) if checked else None,
                     'steps': float(out.steps.double().mean()) if checked else None, 'trained': trained, 'torch': torch.__version__})
        print(f'{rows[-1]["device"]:28.28s} {name:9s} {method:24s} {rows[-1]["spectra_per_second"]:>10,d} spectra/s', flush=True)
    return rows


def simulation(device, spectra, repeats):
    "Row of the table: parameters drawn from the paper's ranges, decoded, white noise added"
    _, _, sim, _, _ = bare(None)
    decoder, g = sim.decoder.to(device), torch.Generator(device).manual_seed(1)
    seconds, best, _ = clock(lambda like: sim(spectra, g).fids, decoder.fids, repeats)
    row = {'device': torch.cuda.get_device_name() if device == 'cuda' else cpu_name(), 'cores': torch.get_num_threads() if device == 'cpu' else 0, 'model': 'bare', 'points': decoder.acquisition.points,
           'amplitudes': decoder.linear, 'parameters': decoder.layout.size, 'method': 'simulate', 'spectra': spectra, 'seconds': seconds, 'spectra_per_second': round(spectra/seconds), 'best': round(spectra/best), 'torch': torch.__version__}
    print(f'{row["device"]:28.28s} simulate {row["spectra_per_second"]:>10,d} spectra of {row["points"]:,} points a second, {60*row["spectra_per_second"]/1e6:,.1f} million a minute', flush=True)
    return row


def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--models', type=Path, help='folder of networks trained by bare_study_run.py')
    p.add_argument('--out', type=Path, help='default benchmark.csv (benchmark_simulate.csv) beside this script')
    p.add_argument('--device', choices=('cpu', 'cuda', 'both'), default='both', help='both: the GPU if there is one')
    p.add_argument('--only', choices=('bare', 'brain-3t'))
    p.add_argument('--simulate', action='store_true', help='time the simulation of spectra instead')
    p.add_argument('--repeats', type=int, default=5)
    args = p.parse_args()
    torch.set_num_threads(1)
    args.out = args.out or HERE/('benchmark_simulate.csv' if args.simulate else 'benchmark.csv')
    devices = [d for d in ('cpu', 'cuda') if args.device in (d, 'both') and (d == 'cpu' or torch.cuda.is_available())]
    sizes = {('bare', 'cpu'): 2000, ('bare', 'cuda'): 200_000, ('brain-3t', 'cpu'): 60, ('brain-3t', 'cuda'): 128_000}
    if args.simulate: return put(args.out, pd.DataFrame([simulation(d, {'cpu': 2048, 'cuda': 262_144}[d], args.repeats) for d in devices]), ('device', 'cores', 'model', 'method'))
    rows = []
    for name, build in {'bare': bare, 'brain-3t': brain}.items():
        if args.only in (None, name): rows += [r for d in devices for r in measure(name, build(args.models), d, sizes[name, d], args.repeats)]
    put(args.out, pd.DataFrame(rows), ('device', 'cores', 'model', 'method'))


if __name__ == '__main__': main()
