"""Other tools on the bare study: the same simulated spectra for deepmrs and for the tools that are installed, at three noise levels.

    python nbs/results/peers_study.py                          # deepmrs fit, LCModel and FSL-MRS where they are; 20 spectra a level
    python nbs/results/peers_study.py --spectra 200 --model FOLDER    # with a network that bare_study_run.py trained (simulated set)
    python nbs/results/peers_study.py --lcmodel PATH --fsl-mrs PATH   # programs that are not on the path

The basis set is the one that bare_study_run.py simulates, 2,048 points, and every tool gets the macromolecule signal that made the spectra. All run on one core. Amounts of a tool may have
units of their own: one factor a tool and level, that of least squares through all amounts, is taken out and kept in the column `scale` (1 for deepmrs and LCModel, whose amounts
are in units of the basis set). Error and bound are compared over the amounts whose mean bound is below a quarter of their mean amount. Rows of peers.csv that are made anew replace the old ones.
"""
import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from bare_study_run import HERE, LEVELS, make, put, simulated_set
from deepmrs.basis import Basis
from deepmrs.core import InputError, Spectra
from deepmrs.evaluation import metrics, peak_snr
from deepmrs.fitting import crlb
from deepmrs.peers import find_fsl_mrs, find_lcmodel, plain_name, read_fsl_mrs, read_lcmodel, run_fsl_mrs, run_lcmodel, write_for_fsl_mrs, write_for_lcmodel
from deepmrs.quantify import estimate, quantify
from deepmrs.simulate import Simulator, paper_priors

SETTINGS = {'LCModel': {'default': {}, 'no baseline': {'NOBASE': True}},
            'FSL-MRS': {'Lorentzian, no baseline': ('--lorentzian', '--baseline', 'off'), 'default': (), 'spline, moderate': ('--baseline', 'spline, moderate')}}
OF_ITS_OWN = ('FSL-MRS',)  # tools whose raw amounts have units of their own


def matrix(table, names, spectra):
    "A tool's tidy table as values and sds [B, K], NaN where it has none"
    table = table[table.metabolite.notna()].assign(name=lambda d: d.metabolite.map(plain_name)).drop_duplicates(['spectrum', 'name'])
    out = [table.pivot(index='spectrum', columns='name', values=c).reindex(index=spectra, columns=[plain_name(n) for n in names]).to_numpy(float) for c in ('amplitude', 'sd')]
    return out


def deepmrs_rows(decoder, fids, model):
    "method → (values, sds [B, K], seconds a spectrum)"
    K, out = decoder.linear, {}
    few = fids[:10]
    tic = time.perf_counter()
    for y in few: estimate(decoder, y[None], 'fit', None)
    one = (time.perf_counter() - tic)/len(few)
    for method in ('fit',) if model is None else ('fit', 'hybrid', 'network'):
        d, y = (decoder, fids) if model is None or method == 'fit' else (model.decoder, fids[:, :model.acquisition.points])
        for _ in range(2):  # the first call of anything is slow
            tic = time.perf_counter()
            with torch.no_grad(): f = estimate(d, y, method, None, model)
            took = time.perf_counter() - tic
        out['deepmrs', method] = (f.params[:, :K].numpy(), f.sd[:, :K].numpy(), took/len(fids))
    out['deepmrs', 'fit, one at a time'] = (*out['deepmrs', 'fit'][:2], one)
    return out


def complete(spectra, metabolites, mm, names):
    "The default for in vivo spectra (per-metabolite shifts, Voigt lines, baseline, soft priors), told the macromolecules: as flexible as the defaults of the other tools"
    quantify(spectra[:2], metabolites, macromolecules='measured', measured=mm)
    tic = time.perf_counter()
    result = quantify(spectra, metabolites, macromolecules='measured', measured=mm)
    return {('deepmrs', 'fit, brain-3t'): (*matrix(result.to_frame(), names, spectra.names), (time.perf_counter() - tic)/len(spectra))}


def peer_rows(spectra, basis, names, programs):
    "(tool, setting) → (values, sds [B, K], seconds a spectrum), of the tools that are there"
    out, work = {}, {'LCModel': (write_for_lcmodel, run_lcmodel, read_lcmodel), 'FSL-MRS': (write_for_fsl_mrs, run_fsl_mrs, read_fsl_mrs)}
    for tool, (write, run, read) in work.items():
        for setting, options in SETTINGS[tool].items() if programs[tool] else ():
            with tempfile.TemporaryDirectory() as folder:
                write(spectra, basis, Path(folder)/'run', options=options)
                seconds = np.nanmedian(list(run(Path(folder)/'run', programs[tool]).values()))
                try: out[tool, setting] = (*matrix(read(Path(folder)/'run'), names, spectra.names), seconds)
                except InputError as e: print(f'{tool}, {setting}: {e}')
    return out


def judge(truth, bound, names, values, sds, scale_free):
    "Median RMSE/CRLB, bias and coverage of one tool over the amounts that can be known"
    ok = np.isfinite(values)
    scale = float((values[ok]*truth[ok]).sum()/(truth[ok]**2).sum()) if scale_free and ok.any() else 1.
    m = metrics(truth, values/scale, names, sds/scale, bound)
    known = m[m.bound_percent < 25]
    naa = m[m.metabolite == 'NAA'].iloc[0]
    return {'scale': scale, 'amounts': len(known), 'missing': int((~ok).sum()), 'rmse_over_crlb': known.rmse_over_crlb.median(), 'worst_rmse_over_crlb': known.rmse_over_crlb.max(),
            'bias_percent': (100*known.bias.abs()/known.truth_mean).median(), 'naa_bias_percent': 100*naa.bias/naa.truth_mean, 'coverage_95': known.coverage_95.median()}


def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--spectra', type=int, default=20, help='at each noise level')
    p.add_argument('--lcmodel', help='the program; default where it is usually found')
    p.add_argument('--fsl-mrs', help='the command; default where it is usually found')
    p.add_argument('--model', type=Path, help='a network trained by bare_study_run.py on the simulated set')
    p.add_argument('--out', type=Path, default=HERE/'peers.csv')
    p.add_argument('--seed', type=int, default=0)
    args = p.parse_args()
    torch.set_num_threads(1)
    programs = {'LCModel': args.lcmodel or find_lcmodel(), 'FSL-MRS': args.fsl_mrs or find_fsl_mrs()}
    for tool, program in programs.items(): print(f'{tool}: {program or "not installed, skipped"}')
    model = None
    if args.model:
        from deepmrs.training import load_model
        model = load_model(args.model)
    metabolites, mm = simulated_set()
    decoder = make(metabolites, mm, 2048)
    basis = Basis(torch.cat([metabolites.fids, mm[None]]), [*metabolites.names, 'MM'], acquisition=metabolites.acquisition)
    names, K, rows = [*metabolites.names, 'MM'], decoder.linear, []
    for sd in LEVELS:
        batch = Simulator(decoder, paper_priors(decoder), sd)(args.spectra, torch.Generator().manual_seed(args.seed))
        bound = crlb(decoder, batch.params, sd)[:, :K, :K].diagonal(dim1=-2, dim2=-1).sqrt().numpy()
        truth, snr = batch.params[:, :K].double().numpy(), float(peak_snr(decoder, batch.params, sd).median())
        spectra = Spectra(batch.fids, acquisition=decoder.acquisition, names=[f's{i:03d}' for i in range(args.spectra)])
        every = deepmrs_rows(decoder, batch.fids, model) | complete(spectra, metabolites, mm, names) | peer_rows(spectra, basis, names, programs)
        own = every['deepmrs', 'fit'][2]
        for (tool, setting), (values, sds, seconds) in every.items():
            rows.append({'tool': tool, 'setting': setting, 'noise_sd': sd, 'snr': snr, 'spectra': args.spectra, 'seconds': seconds, 'times_deepmrs_fit': seconds/own,
                         **judge(truth, bound, names, values, sds, tool in OF_ITS_OWN), 'source': 'peers_study.py'})
            r = rows[-1]
            print(f'SNR {snr:5.1f}  {tool:8s} {setting:24s} {seconds:8.4f} s a spectrum ({r["times_deepmrs_fit"]:6.0f} x)  RMSE/CRLB {r["rmse_over_crlb"]:.3f}, worst {r["worst_rmse_over_crlb"]:.2f}', flush=True)
    put(args.out, pd.DataFrame(rows), ('source', 'tool', 'setting', 'noise_sd'))


if __name__ == '__main__': main()
