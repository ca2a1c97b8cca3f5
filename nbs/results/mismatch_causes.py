"""Where does the bias of the presets in the mismatch study come from? One thing of the model at a time is made right.

    python nbs/results/mismatch_causes.py       # some six minutes on one core; rows go to mismatch_causes.csv (those stored are of the presets' version 2)

The spectra are those of mismatch_study.py with normal amounts at SNR 60. Its truth has the 18 Lorentzian lines as macromolecules and gives every metabolite a shift of its own, creatine and
phosphocreatine, too, which brain-3t shifts together.
"""
import argparse
from pathlib import Path

import pandas as pd

from deepmrs.core import canonical_name
from deepmrs.model import PAIRS
from deepmrs.spins import simulate_basis
from mismatch_study import FIELDS, TYPICAL, judge, make_spectra

HERE = Path(__file__).resolve().parent
CASES = {'as it is': {}, 'ratios off': dict(ratios='off'), 'lines of the truth': dict(macromolecules='parametrised'), 'pairs together': dict(groups=PAIRS), 'shifts all apart': dict(groups=[])}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--out', type=Path, default=HERE/'mismatch_causes.csv')
    p.add_argument('--n', type=int, default=100, help='spectra')
    p.add_argument('--snr', type=float, default=60)
    args = p.parse_args()
    rows = []
    for field, acq in FIELDS.items():
        basis = simulate_basis(**acq)
        basis = basis.select([n for n in basis.names if canonical_name(n) in TYPICAL])
        fids, truth, _ = make_spectra(basis, args.n, args.snr, 'normal', seed=int(args.snr))
        jobs = {k: (field, c) for k, c in CASES.items()}
        for case, (preset, choices) in jobs.items():
            t, seconds = judge(basis, preset, choices, fids, truth)
            rows.append(t.assign(preset=field, case=case, snr=args.snr, spectra=args.n, seconds=seconds))
            print(f'{field:12s} {case:20s} bias of totals {(t.bias/t.truth)[-4:].abs().mean():.3f}, error of totals {t.relative[-4:].mean():.3f}, their error/bar {t.error_over_sd[-4:].median():.2f}', flush=True)
            pd.concat(rows, ignore_index=True).to_csv(args.out, index=False, float_format='%.5g')


if __name__ == '__main__': main()
