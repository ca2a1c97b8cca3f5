"""Where the constants of `deepmrs.macromolecules.PATTERN` come from: one set of lines for all measured macromolecule signals.

    python nbs/results/macromolecule_pattern.py --data ../shared/data      # some ten seconds; prints the table

The signals: metabolite-nulled brain spectra of four makers, collected for the consensus paper on macromolecules (Cudalbu 2021, NMR in Biomedicine, e4393): human 3 T, 7 T and
9.4 T, rat 9.4 T; and the one that Shamaei 2023 simulated with. They are not part of the project; the script says so where they are missing.

Every signal is a sum of the same lines. A line is a Voigt: a Gaussian with a width in ppm (many protons with slightly different shifts) times a Lorentzian with a width in
Hz that all lines of a signal share (their short T2). Each signal has a shift, a Lorentzian width and one amount a line of its own, on a straight base.
"""
import argparse
import warnings
from pathlib import Path

import numpy as np
from scipy.optimize import least_squares, nnls

from deepmrs.core import InputError, fid_to_spectrum
from deepmrs.io import read_paper_mm, read_spectra

GRID = np.arange(0.3, 4.15, 0.01)  # ppm
FILES = {  # name: (file, ppm by which its axis is too high: where its reference line at 0 ppm stands)
    'human 3 T': ('macromolecules/mm_3T_human_STEAM_TE8.nii.gz', 0.04), 'human 7 T': ('macromolecules/mm_7T_human_STEAM_TE6.nii.gz', 0.04),
    'human 9.4 T': ('macromolecules/mm_9.4T_human_sLASER_TE24.nii.gz', 0.), 'rat 9.4 T': ('macromolecules/mm_9.4T_rat_STEAM_TE2.nii.gz', 0.04),
    'Shamaei 3 T': ('seed/mm.mat', 0.)}
FIRST = (  # name, ppm, FWHM ppm, share of the name's amount: where the fit starts
    ('MM09', 0.91, 0.14, 1.), ('MM12', 1.21, 0.13, 1.), ('MM14', 1.39, 0.12, 1.), ('MM17', 1.65, 0.19, 1.), ('MM20', 2.03, 0.15, 0.7), ('MM20', 1.87, 0.16, 0.3),
    ('MM23', 2.26, 0.13, 0.6), ('MM23', 2.38, 0.20, 0.4), ('MM26', 2.55, 0.10, 1.), ('MM27', 2.69, 0.16, 1.), ('MM30', 2.99, 0.12, 1.), ('MM32', 3.20, 0.11, 1.),
    ('MM36', 3.61, 0.14, 1.), ('MM37', 3.75, 0.12, 1.), ('MM38', 3.87, 0.10, 1.), ('MM40', 4.00, 0.16, 1.))
NAMES = tuple(dict.fromkeys(line[0] for line in FIRST))
OF_NAME = np.array([[float(line[0] == n) for line in FIRST] for n in NAMES])


def measured_signals(data):
    "name → (FID [N], `Acquisition`, ppm too high) of the files that are there"
    out = {}
    for name, (file, offset) in FILES.items():
        path = Path(data)/file
        if not path.is_file():
            warnings.warn(f'{path} is not there; it is left out.')
            continue
        s = read_paper_mm(path, mended=True) if path.suffix == '.mat' else read_spectra(path)
        out[name] = (s.fids[0], s.acquisition, offset)
    if len(out) < 2: raise InputError(f'{data} holds fewer than two measured macromolecule signals.')
    return out


def on_grid(fid, acq, offset):
    "Real part of a signal's spectrum on `GRID`, highest point 1"
    spectrum = fid_to_spectrum(fid[None])[0].real.numpy()
    ppm = acq.ppm_axis().numpy() - offset
    order = np.argsort(ppm)
    y = np.interp(GRID, ppm[order], spectrum[order])
    return y/np.abs(y).max()


def voigt(x, centre, gaussian, lorentzian):
    "Pseudo-Voigt lines of unit area [points, lines] (Thompson, Cox and Hastings 1987)"
    g, l = gaussian, lorentzian
    fwhm = (g**5 + 2.69269*g**4*l + 2.42843*g**3*l**2 + 4.47163*g**2*l**3 + 0.07842*g*l**4 + l**5)**0.2
    mixing = 1.36603*l/fwhm - 0.47719*(l/fwhm)**2 + 0.11116*(l/fwhm)**3
    d = x[:, None] - centre
    gauss = np.exp(-4*np.log(2)*(d/fwhm)**2)*np.sqrt(4*np.log(2)/np.pi)/fwhm
    lorentz = fwhm/(2*np.pi)/(d**2 + fwhm**2/4)
    return (1 - mixing)*gauss + mixing*lorentz


class SharedLines:
    "The same lines for several signals, `curves` name → (spectrum on `GRID`, MHz)"

    def __init__(self, curves):
        self.curves, L = curves, len(FIRST)
        self.centre, self.width, self.share = (np.array([line[i] for line in FIRST]) for i in (1, 2, 3))
        self.mixed = self.share < 1
        self.size = 2*L + int(self.mixed.sum())

    def unpack(self, t):
        "(centres ppm, Gaussian widths ppm, shares, and shift ppm and Lorentzian width Hz of each signal)"
        L, n = len(FIRST), self.size
        share = self.share.copy()
        share[self.mixed] *= np.exp(0.3*t[2*L:n])
        share = share/(OF_NAME.T @ (OF_NAME @ share))
        own = t[n:].reshape(-1, 2)
        return self.centre + 0.01*t[:L], self.width*np.exp(0.1*t[L:2*L]), share, 0.01*own[:, 0], 22*np.exp(0.3*own[:, 1])

    def amounts(self, name, centre, width, share, shift, lorentzian):
        "(amount of each name, base, model) of one signal, by non-negative least squares with a weak ridge"
        y, mhz = self.curves[name]
        lines = voigt(GRID, centre + shift, width, lorentzian/mhz)*share @ OF_NAME.T*0.15
        base = np.stack([np.ones_like(GRID), GRID - 2.2], 1)
        A = np.concatenate([lines, base, -base], 1)
        padded = np.concatenate([A, 1e-2*np.eye(A.shape[1])])
        c = nnls(padded, np.concatenate([y, np.zeros(A.shape[1])]))[0]
        K = len(NAMES)
        return c[:K], base @ (c[K:K + 2] - c[K + 2:]), A @ c

    def misfit(self, t):
        centre, width, share, shift, lorentzian = self.unpack(t)
        rest = [t]
        for i, (name, (y, _)) in enumerate(self.curves.items()): rest.append((self.amounts(name, centre, width, share, shift[i], lorentzian[i])[2] - y)/0.02)
        return np.concatenate(rest)

    def fit(self):
        "dict: lines (name, ppm, FWHM ppm, share), Lorentzian width [signals] in Hz, shift [signals], amounts [signals, names] with mean 1 a signal"
        t = least_squares(self.misfit, np.zeros(self.size + 2*len(self.curves)), diff_step=1e-2, max_nfev=15).x
        centre, width, share, shift, lorentzian = self.unpack(t)
        found = [self.amounts(n, centre, width, share, shift[i], lorentzian[i]) for i, n in enumerate(self.curves)]
        amounts = np.array([f[0] for f in found])
        return dict(lines=[(n, p, w, s) for (n, *_), p, w, s in zip(FIRST, centre, width, share)], lorentzian=lorentzian, shift=shift, base=[f[1] for f in found], model=[f[2] for f in found],
                    height=amounts.mean(1), amounts=amounts/amounts.mean(1, keepdims=True))


def derive(signals):
    "What `SharedLines.fit` finds in these signals, with mean amounts in man and their relative spread"
    curves = {k: (on_grid(*s), s[1].spectrometer_frequency) for k, s in signals.items()}
    found = SharedLines(curves).fit()
    human = found['amounts'][[not k.startswith('rat') for k in signals]]
    mean = human.mean(0)
    return found | dict(curves=curves, mean=mean, spread=human.std(0, ddof=1)/mean)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', default='../shared/data')
    p.add_argument('--figure', type=Path, help='draw the signals and their lines into this file')
    args = p.parse_args()
    found = derive(measured_signals(args.data))
    for name, ppm, width, share in found['lines']: print(f'{name}: {ppm:.3f} ppm, Gaussian {width:.3f} ppm, share {share:.2f}')
    for name, w, s, a in zip(found['curves'], found['lorentzian'], found['shift'], found['amounts']): print(f'{name:12s} Lorentzian {w:4.1f} Hz, shift {s:+.3f} ppm, amounts', *(f'{v:.2f}' for v in a))
    for name, m, s in zip(NAMES, found['mean'], found['spread']): print(f'{name}: {m:.2f} in man, spread {s:.2f} of it')
    if args.figure:
        import matplotlib.pyplot as plt
        fig, axes = plt.subplots(len(found['curves']), 1, figsize=(7, 9), layout='constrained')
        for ax, (name, (y, _)), model in zip(axes, found['curves'].items(), found['model']):
            ax.plot(GRID, y, '0.5', GRID, model, 'C0', GRID, y - model - 0.1, 'C3', lw=0.9)
            ax.set(xlim=(4.2, 0.2), title=name, yticks=[])
        fig.savefig(args.figure, dpi=80)


if __name__ == '__main__': main()
