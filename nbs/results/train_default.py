"""Train the model that comes with deepmrs: 3 T, PRESS, TE 30 ms, the whole brain-3t model.

    python nbs/results/train_default.py --minutes 5 --out DIR

Writes DIR/model.safetensors and DIR/model.json (copy them to deepmrs/data/default.*), logs, checkpoints and errors.csv:
each parameter's error on fresh spectra, beside the spread of its prior and the Cramér-Rao bound.
"""
import argparse
import math
import time
from pathlib import Path

import pandas as pd
import torch

from deepmrs.core import Acquisition
from deepmrs.encoders import ENCODERS
from deepmrs.fitting import crlb, fit
from deepmrs.simulate import Simulator, water_removal
from deepmrs.training import get_priors, load_model, train

ACQUISITION = dict(sequence='press', te1=0.011, te2=0.019, spectrometer_frequency=123.2, dwell_time=2.5e-4, points=2048)
CHANNELS = [32, 64, 96, 128, 160, 192, 224, 256]


def noise_for_snr(snr, line=3*9.5, width=6., dwell_time=2.5e-4, points=2048):
    "Noise sd per real number of the FID at which NAA (protons × mmol/kg, FWHM in Hz) has this SNR: height over spectral noise sd"
    return line/(math.pi*width)/dwell_time/(snr*math.sqrt(points))


def residual_water(fids, batch, generator):
    "Two spectra in three get lines of water, 5 to 50 Hz wide, up to 30 times the first point; training removes it as `quantify` does"
    n, device = len(fids), fids.device
    acq = Acquisition(ACQUISITION['dwell_time'], ACQUISITION['spectrometer_frequency'], fids.shape[1])
    lines = 3
    uniform = lambda low, high, *shape: low + (high - low)*torch.rand(*shape, generator=generator, device=device)
    t = torch.arange(fids.shape[1], device=device)*acq.dwell_time
    size = batch.clean[:, :1].abs()*(10**uniform(-2, 1.5, n, 1))*(uniform(0, 1, n, 1) < 2/3)
    place = uniform(-0.08, 0.04, n, 1)*acq.spectrometer_frequency
    water = 0
    for _ in range(lines):
        hz, width, phase = place + uniform(-15, 15, n, 1), uniform(5, 50, n, 1), uniform(0, 1, n, 1)
        water = water + uniform(0, 1, n, 1)/lines*torch.exp(2j*math.pi*(phase + hz*t) - math.pi*width*t)
    return (fids + size*water).to(fids.dtype)


def errors(model, sim, n=2000, seed=123):
    "Table: each parameter's RMSE, bias and slope on n fresh spectra, the prior's sd, the median Cramér-Rao bound and the fit from the network's start"
    b = sim(n, torch.Generator(model.decoder.fids.device).manual_seed(seed))
    x, lay = model(b.fids), model.layout
    e = x - b.params
    slope = ((x - x.mean(0))*(b.params - b.params.mean(0))).sum(0)/(b.params - b.params.mean(0)).square().sum(0).clamp_min(1e-30)
    some = slice(0, min(n, 200))
    bound = crlb(model.decoder, b.params[some], b.noise_sd[some], model.preset.window, priors=True).diagonal(dim1=-2, dim2=-1).sqrt().median(0).values
    rows = dict(parameter=lay.labels, rmse=e.square().mean(0).sqrt().tolist(), bias=e.mean(0).tolist(), slope=slope.tolist(), prior_sd=b.params.std(0).tolist(), bound=bound.tolist())
    table = pd.DataFrame(rows)
    for name, start in (('network', x[some]), ('coarse', None)):
        tic = time.perf_counter()
        f = fit(model.decoder, b.fids[some], start, model.preset.window, want_covariance=False)
        table[f'fit_from_{name}'] = (f.params - b.params[some]).square().mean(0).sqrt().tolist()
        print(f'fit from the {name} start: {f.steps.double().mean():.1f} steps, {f.converged.double().mean():.1%} converged, median cost {f.cost.median():.4g}, {time.perf_counter() - tic:.1f} s')
    table['rmse_over_prior_sd'] = table.rmse/table.prior_sd
    return table


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--minutes', type=float, default=5.)
    p.add_argument('--out', default='default-model')
    p.add_argument('--batch', type=int, default=2048 if torch.cuda.is_available() else 128)
    p.add_argument('--rate', type=float, default=2e-3)
    p.add_argument('--precision', default='32', choices=('32', 'bf16'))
    p.add_argument('--encoder', default='convnet', choices=list(ENCODERS))
    p.add_argument('--channels', default=','.join(map(str, CHANNELS)), help='of the ConvNet')
    p.add_argument('--parameter-weight', type=float, default=0.02, help='of the supervised loss beside the residual')
    p.add_argument('--snr', default='5,150', help='range of the SNR of NAA')
    p.add_argument('--uncertainty', action='store_true', help='the network states its own error, too')
    p.add_argument('--compile', action='store_true')
    p.add_argument('--resume', action='store_true')
    p.add_argument('--basis', help='a basis set file, instead of simulating one')
    a = p.parse_args()
    if a.basis:
        from deepmrs.io import read_basis
        basis = read_basis(a.basis)
    else:
        from deepmrs.spins import simulate_basis
        basis = simulate_basis(**ACQUISITION)
    print(basis)
    low, high = (float(v) for v in a.snr.split(','))
    noise = (noise_for_snr(high), noise_for_snr(low))
    options = {'channels': [int(c) for c in a.channels.split(',')]} if a.encoder == 'convnet' else None
    tic = time.perf_counter()
    model = train(basis, preset='brain-3t', priors='brain', noise_sd=noise, artefacts=[residual_water], encoder=a.encoder, encoder_options=options, points=1024, out=a.out, resume=a.resume, batch_size=a.batch,
                  spectra_per_epoch=400*a.batch, max_epochs=100_000, minutes=a.minutes, schedule='cosine', learning_rate=a.rate, patience=None, precision=a.precision, clip=1.,
                  parameter_weight=a.parameter_weight, uncertainty=a.uncertainty, compile=a.compile, log_every=64, validation=4*a.batch, progress=False)
    t = model.card['training']
    print(f'{t["spectra_seen"]:,} spectra in {time.perf_counter() - tic:.0f} s: {t["spectra_seen"]/t["seconds"]:,.0f} a second; validation loss {t["validation_loss"]:.4f}')
    model = load_model(a.out)
    if torch.cuda.is_available(): model = model.to('cuda')
    table = errors(model, Simulator(model.decoder, get_priors('brain', model.decoder), noise, artefacts=[residual_water, water_removal(model.decoder.acquisition)]))
    table.to_csv(Path(a.out)/'errors.csv', index=False, float_format='%.5g')
    with pd.option_context('display.width', 200, 'display.max_rows', 200, 'display.precision', 3): print(table[~table.parameter.str.startswith('baseline')].to_string(index=False))
    for f in ('model.safetensors', 'model.json'): print(f, f'{(Path(a.out)/f).stat().st_size/1e6:.2f} MB')


if __name__ == '__main__': main()
