"""The posterior study: do intervals hold, and is the posterior's mean right, on spectra drawn from the very prior that the posterior uses?

    python nbs/results/posterior_study.py                            # 10,000 spectra and 300 chains at each noise level; an hour on a CPU, minutes with a GPU and 16 cores
    python nbs/results/posterior_study.py --spectra 500 --chains 20  # a first look, two minutes
    python nbs/results/posterior_study.py --basis FILE.npz           # on the paper's basis set too, as packed by bare_study_run.py --pack

Three tables. `posterior_study.csv`: coverage, errors and data share of each amount. `posterior_study_ranks.csv`: how often the truth fell into each twentieth of
its posterior. `posterior_study_chains.csv`: the posterior's mean against that of Markov chains (emcee) which call the decoder for every step and know nothing of
the expansion; the noise variance, unknown to both, is integrated out. What is in the tables with as many spectra is not made again (`--again` does).
"""
import argparse
import math
import multiprocessing
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy import stats

from bare_study_run import HERE, LEVELS, make, paper_set, put, simulated_set
from deepmrs.core import TOTALS
from deepmrs.fitting import box_qp, fit
from deepmrs.posterior import MOSTLY_PRIOR, guess, log_guess, posterior
from deepmrs.simulate import Simulator, paper_priors

BINS = 20
SHARES = (50, 80, 95)  # % of the posterior within an interval
WALKERS = 32


def total_rows(decoder):
    "(names, weights [T, P]) of the totals that the model has both parts of, and of Cr + PCr etc. under their usual names"
    labels, out = decoder.layout.labels, {}
    for name, parts in TOTALS.items():
        have = [p for p in parts if p in labels]
        if len(have) > 1: out[name] = torch.tensor([float(l in have) for l in labels], dtype=torch.float64)
    return list(out), torch.stack(list(out.values()))


def inside(u, share): return float(((u - .5).abs() < share/200).double().mean())


def rows_of(names, kinds, u, truth, values, sd):
    "Coverage, errors and ranks: (rows, counts of the ranks) for columns `names`; `values` are estimates by name"
    rows, ranks = [], []
    for k, (name, kind) in enumerate(zip(names, kinds)):
        counts = torch.histc(u[:, k], BINS, 0, 1).cpu().numpy()
        rms = {f'rmse_{v}': float((e[:, k] - truth[:, k]).square().mean().sqrt()) for v, e in values.items()}
        z = (values['mean'][:, k] - truth[:, k])/sd[:, k]
        rows.append({'metabolite': name, 'kind': kind, 'n': len(u), 'truth_mean': float(truth[:, k].mean()), 'truth_sd': float(truth[:, k].std())} |
                    {f'coverage_{s}': inside(u[:, k], s) for s in SHARES} |
                    {'rank_p': float(stats.chisquare(counts).pvalue), 'z_mean': float(z.mean()), 'z_sd': float(z.std()), 'sd': float(sd[:, k].square().mean().sqrt())} | rms)
        ranks.append({'metabolite': name, 'n': len(u)} | {f'bin_{i}': int(c) for i, c in enumerate(counts)})
    return rows, ranks


def level_tables(decoder, noise_sd, n, seed):
    "(rows, ranks, batch, posterior) of n spectra at one noise level"
    device, prior = decoder.fids.device, paper_priors(decoder)
    sim, sync = Simulator(decoder, prior, noise_sd), torch.cuda.synchronize if decoder.fids.is_cuda else (lambda: None)
    batch = sim(n, torch.Generator(device).manual_seed(seed))
    tic = time.perf_counter(); f = fit(decoder, batch.fids); sync(); fitted = time.perf_counter() - tic
    posterior(decoder, batch.fids[:256], fit(decoder, batch.fids[:256]), prior=prior); sync()  # the first call of anything is slow
    tic = time.perf_counter(); post = posterior(decoder, batch.fids, f, prior=prior); sync(); took = time.perf_counter() - tic
    truth, K, lay = batch.params.double(), decoder.linear, decoder.layout
    c = torch.minimum(torch.maximum(f.params, post.low), post.high)
    mode = c + box_qp(post.precision, (post.precision @ c[..., None])[..., 0] - post.shift, post.low - c, post.high - c)
    middle = sim.moments()[0].to(truth).expand_as(truth)
    M = len(decoder.signals[0].names)
    kinds = ['metabolite']*M + ['macromolecule']*(K - M) + ['other']*(lay.size - K)
    rows, ranks = rows_of(lay.labels, kinds, post.cdf(truth), truth, {'mean': post.mean, 'box_mode': mode, 'fit': f.params, 'prior': middle}, post.sd)
    held = ((f.params - truth).abs() < 1.96*f.sd).double().mean(0)
    for k, r in enumerate(rows):
        r['fit_coverage_95'] = float(held[k])
        if k < K: r['data_share'], r['mostly_prior'] = float(post.data_share[:, k].median()), float(post.mostly_prior[:, k].double().mean())
    names, W = total_rows(decoder)
    u, W, gen = [], W.to(device), torch.Generator(device).manual_seed(seed + 1)
    for at in range(0, n, 256):  # the place of the truth among draws
        x = post[at:at + 256].samples(200, gen, 4) @ W.T
        u.append((((x < (truth[at:at + 256] @ W.T)[:, None]).sum(1) + torch.rand(x[:, 0].shape, generator=gen, device=device))/201))
    total = lambda v: v @ W.T
    sd = torch.einsum('tp,bpq,tq->bt', W, post.covariance, W).sqrt()
    more, ranks2 = rows_of(names, ['total']*len(names), torch.cat(u), total(truth), {'mean': total(post.mean), 'box_mode': total(mode), 'fit': total(f.params), 'prior': total(middle)}, sd)
    where = {'noise_sd': noise_sd, 'converged': float(post.converged.double().mean()), 'fit_per_second': n/fitted, 'posterior_per_second': n/took,
             'device': torch.cuda.get_device_name() if decoder.fids.is_cuda else 'CPU'}
    return pd.DataFrame(rows + more).assign(**where), pd.DataFrame(ranks + ranks2).assign(noise_sd=noise_sd), batch, post


def start_worker(decoder):
    global DECODER
    DECODER = decoder
    torch.set_num_threads(1)


def chain(job):
    "(mean, sd, R-hat, effective draws [P], acceptance) of a chain for one FID"
    import emcee
    y, one, steps, seed = job
    low, high, gen = one.low[0].numpy(), one.high[0].numpy(), torch.Generator().manual_seed(seed)
    P = len(low)

    def log_probability(X):
        "Uniform in the box; the noise variance integrated out: (squared residual)^(−points)"
        out, ok = np.full(len(X), -np.inf), ((X > low) & (X < high)).all(1)
        if ok.any():
            with torch.no_grad(): r = torch.view_as_real(DECODER(torch.from_numpy(X[ok]).float()) - y).flatten(1)
            out[ok] = -r.shape[1]/2*r.square().sum(-1).double().log().numpy()
        return out

    def leap(X, rng):
        "A new point from the guess, wherever the old one is; detailed balance through the probability of both under the guess"
        new, density = guess(one, len(X), gen)
        return new[0].numpy(), (log_guess(one, torch.from_numpy(X)[None]) - density)[0].numpy()

    walk = emcee.moves.GaussianMove(one.covariance[0].numpy()*1.5**2/P)
    def run(start, moves):
        sampler = emcee.EnsembleSampler(WALKERS, P, log_probability, vectorize=True, moves=moves)
        sampler._random = np.random.RandomState(seed)
        sampler.run_mcmc(start, steps)
        return sampler

    middle, far = one.mean[0].numpy(), 1.25*(guess(one, WALKERS, gen)[0][0] - one.mean).numpy()  # a start wider than the posterior
    start = np.clip(middle + far, low + .001*(high - low), high - .001*(high - low))
    settled = run(start, walk).get_last_sample()  # small steps first: leaps from where the guess has hardly any density are accepted late
    sampler = run(settled.coords, [(emcee.moves.MHMove(leap), .7), (walk, .3)])
    x = sampler.get_chain()  # [steps, walkers, P]; with these moves every walker is a chain of its own
    n, within, between = len(x), x.var(0, ddof=1).mean(0), x.mean(0).var(0, ddof=1)
    tau = emcee.autocorr.integrated_time(x, tol=0, quiet=True)
    return x.mean((0, 1)), x.reshape(-1, P).std(0), np.sqrt(1 - 1/n + between/within), n*WALKERS/np.maximum(tau, 1), sampler.acceptance_fraction.mean()


def chain_table(decoder, batch, post, n, steps, workers, noise_sd):
    "A row an amount: the posterior's mean against that of the chains, on n spectra"
    lean = decoder.cpu()
    for key in ('_gram', '_soft', '_walker'): lean.__dict__.pop(key, None)
    cpu = lambda p: type(p)(*(v.cpu() if isinstance(v, torch.Tensor) else v for v in vars(p).values()))
    jobs = [(batch.fids[i].cpu(), cpu(post[i:i + 1]), steps, i) for i in range(n)]
    tic = time.perf_counter()
    with multiprocessing.get_context('spawn').Pool(min(workers, n), start_worker, (lean,)) as pool:
        mean, sd, rhat, ess, accepted = (np.stack(v) for v in zip(*pool.imap(chain, jobs, chunksize=4)))
    took = time.perf_counter() - tic
    truth, mine, my_sd = (v[:n].cpu().double().numpy() for v in (batch.params, post.mean, post.sd))
    rms = lambda e: np.sqrt((e**2).mean(0))
    frame = pd.DataFrame({'metabolite': decoder.layout.labels, 'n': n, 'rmse_posterior': rms(mine - truth), 'rmse_chain': rms(mean - truth), 'away': rms((mine - mean)/sd),
                          'bias': ((mine - mean)/sd).mean(0), 'sd_ratio': np.exp(np.log(my_sd/sd).mean(0)), 'chain_error': rms(1/np.sqrt(ess)), 'rhat_max': rhat.max(0), 'rhat_median': np.median(rhat, 0),
                          'ess_min': ess.min(0), 'ess_median': np.median(ess, 0)})
    frame['ratio'] = frame.rmse_posterior/frame.rmse_chain
    return frame.assign(noise_sd=noise_sd, steps=steps, walkers=WALKERS, accepted=accepted.mean(), seconds=took, workers=workers)


def have(path, basis, sd, n):
    "Does a table hold this level with at least n spectra?"
    if not path.exists(): return False
    d = pd.read_csv(path)
    d = d[(d.basis == basis) & np.isclose(d.noise_sd, sd)]
    return len(d) > 0 and d.n.min() >= n


def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--out', type=Path, default=HERE/'posterior_study.csv', help='the table; the others get names beside it')
    p.add_argument('--basis', type=Path, help="the paper's basis set as packed by bare_study_run.py --pack")
    p.add_argument('--only', choices=('simulated', 'paper'), help='one basis set')
    p.add_argument('--spectra', type=int, default=10_000, help='at each level')
    p.add_argument('--chains', type=int, default=300, help='of these spectra, at each level, get a Markov chain')
    p.add_argument('--steps', type=int, default=400, help=f'of each chain, for each of {WALKERS} walkers, after as many to settle')
    p.add_argument('--workers', type=int, default=multiprocessing.cpu_count(), help='processes for the chains')
    p.add_argument('--again', action='store_true', help='make what is there again')
    p.add_argument('--device', default='auto'); p.add_argument('--seed', type=int, default=0)
    args = p.parse_args()
    device = ('cuda' if torch.cuda.is_available() else 'cpu') if args.device == 'auto' else args.device
    beside = lambda part: args.out.with_name(f'{args.out.stem}_{part}.csv')
    for name, found in {'simulated': simulated_set, 'paper': lambda: paper_set(args.basis)}.items():
        if args.only not in (None, name) or (basis := found()) is None: continue
        decoder, keys = make(*basis).to(device), ('basis', 'noise_sd', 'metabolite')
        for i, sd in enumerate(LEVELS):
            chains = args.chains and (args.again or not have(beside('chains'), name, sd, args.chains))
            if not chains and not args.again and have(args.out, name, sd, args.spectra): continue
            rows, ranks, batch, post = level_tables(decoder.to(device), sd, max(args.spectra, args.chains), args.seed + i)
            if args.again or not have(args.out, name, sd, args.spectra):
                put(args.out, rows.assign(basis=name), keys), put(beside('ranks'), ranks.assign(basis=name), keys)
            m = rows[rows.kind.isin(('metabolite', 'macromolecule'))]
            print(f'{name}, noise sd {sd:g}: 95 % intervals hold {m.coverage_95.min():.3f} to {m.coverage_95.max():.3f}; {rows.posterior_per_second.iloc[0]:.0f} spectra a second', flush=True)
            if not chains: continue
            table = chain_table(decoder, batch, post, args.chains, args.steps, args.workers, sd)
            put(beside('chains'), table.assign(basis=name), keys)
            print(f'  against chains: RMSE ratio {table.ratio.min():.4f} to {table.ratio.max():.4f}, R-hat ≤ {table.rhat_max.max():.3f}, at least {table.ess_min.min():.0f} effective draws, {table.seconds.iloc[0]:.0f} s', flush=True)


if __name__ == '__main__': main()
