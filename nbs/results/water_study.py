"""Does residual water change the answer, and what does it cost to remove it?

    python nbs/results/water_study.py                  # both parts; rows go to water_study.csv and water_speed.csv
    python nbs/results/water_study.py --only speed --device cuda

Amounts: spectra of the mismatch study (no preset describes them exactly) get residual water of 0 to 200 times the metabolites' first point (four lines, 5 to 50 Hz wide, 0 to
30 Hz apart), are moved by up to 0.1 ppm, turned and scaled, and `quantify` must give the amounts of the untouched ones: the change over the error bar.
"""
import argparse
import math
import time
from pathlib import Path

import pandas as pd
import torch
from mismatch_study import make_spectra

from deepmrs.core import Acquisition, Spectra
from deepmrs.preprocess import exponentials, remove_water, water_model
from deepmrs.spins import simulate_basis

HERE = Path(__file__).resolve().parent
SETTING = dict(sequence='press', te1=.011, te2=.019, spectrometer_frequency=123.25, dwell_time=5e-4, points=2048)


def pools(acq, first, size, generator):
    "Residual water [B, N], complex128: four lines each, together `size` times the first points [B, 1]"
    n = len(first)
    uniform = lambda low, high, *shape: low + (high - low)*torch.rand(*shape, dtype=torch.float64, generator=generator)
    hz = (uniform(4.6, 4.7, n, 1) - acq.centre_ppm)*acq.spectrometer_frequency + uniform(-15, 15, n, 4)
    rate = torch.complex(-math.pi*uniform(5, 50, n, 4), 2*math.pi*hz)
    weight = torch.polar(uniform(0, 1, n, 4), uniform(-math.pi, math.pi, n, 4))
    fids = (weight[..., None]*torch.exp(rate[..., None]*acq.time_axis(dtype=torch.float64))).sum(1)
    return fids/fids[:, :1].abs()*size*first


def amounts(n=24, snr=60, seed=5):
    "Table: how far amounts move, in error bars, by what was done to the data"
    from deepmrs.quantify import quantify
    basis = simulate_basis(**SETTING)
    acq = basis.acquisition
    fids = make_spectra(basis, n, snr, 'normal', seed)[0].to(torch.complex128)
    water = pools(acq, fids[:, :1].abs(), 1., torch.Generator().manual_seed(seed))
    t = acq.time_axis(dtype=torch.float64)
    wet = fids + 10*water
    cases = {f'water {size:g} times': fids + size*water for size in (0, 1, 10, 50, 200)}
    cases |= {f'moved {ppm:+g} ppm': wet*torch.exp(2j*math.pi*ppm*acq.spectrometer_frequency*t) for ppm in (.01, .02, .04, .1, -.1)}
    cases |= {'turned 1.2 rad': wet*torch.exp(torch.tensor(1.2j)), 'scaled by 1e-6': wet*1e-6}
    run = lambda x: quantify(Spectra(x, acquisition=acq), basis, preset='brain-3t', posterior=False)
    first, rows = run(wet), []
    for name, x in cases.items():
        result = run(x)
        moved = (result.amplitudes*(1e6 if 'scaled' in name else 1.) - first.amplitudes).abs()/first.sd
        rows.append(dict(case=name, spectra=n, snr=snr, median=moved.median().item(), p95=moved.quantile(.95).item(), worst=moved.max().item()))
    return pd.DataFrame(rows)


def speed(device, n):
    "Table: FIDs a second of both ways to remove water, once the model of the acquisition is there, and the time to make that"
    rows = []
    for points, dwell in ((1024, 1e-3), (2048, 5e-4)):
        acq = Acquisition(dwell, 123.25, points)
        tic = time.perf_counter()
        water_model(acq)
        made = time.perf_counter() - tic
        data = Spectra(torch.randn(n, points, dtype=torch.complex64, device=device), acquisition=acq)
        wait = torch.cuda.synchronize if device == 'cuda' else lambda: None
        remove_water(data), wait()
        tic = time.perf_counter()
        for _ in range(5): remove_water(data)
        wait()
        each = (time.perf_counter() - tic)/5/n
        few = data.fids[:8].cpu()
        tic = time.perf_counter()
        exponentials(few)
        hlsvd = (time.perf_counter() - tic)/len(few)
        name = torch.cuda.get_device_name() if device == 'cuda' else 'one core'
        rows.append(dict(device=name, points=points, fids=n, ms_a_fid=each*1e3, fids_a_second=1/each, model_s=made, hlsvd_ms_a_fid_one_core=hlsvd*1e3))
    return pd.DataFrame(rows)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--only', choices=('amounts', 'speed'))
    p.add_argument('--device', default='cpu', choices=('cpu', 'cuda'))
    p.add_argument('--out', type=Path, default=HERE)
    args = p.parse_args()
    if args.device == 'cpu': torch.set_num_threads(1)
    if args.only != 'speed':
        table = amounts()
        print(table.round(4).to_string(index=False))
        table.to_csv(args.out/'water_study.csv', index=False, float_format='%.4g')
    if args.only != 'amounts':
        table, path = speed(args.device, 65536 if args.device == 'cuda' else 1024), args.out/'water_speed.csv'
        print(table.round(4).to_string(index=False))
        if path.exists(): table = pd.concat([pd.read_csv(path), table]).drop_duplicates(['device', 'points'], keep='last')
        table.to_csv(path, index=False, float_format='%.4g')


if __name__ == '__main__': main()
