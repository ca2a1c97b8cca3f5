"Search: what is compared is comparable, a search is one thing in one folder, and what can't be searched is refused in a sentence."
import json
import math
import sys

import pandas as pd
import pytest
import torch

optuna = pytest.importorskip('optuna', reason='the extra "search" is not installed')

from deepmrs.config import read_run
from deepmrs.core import InputError
from deepmrs.encoders import ENCODERS, make_encoder
from deepmrs.io import write_spectra
from deepmrs.runs import ingredients
from deepmrs.search import Judge, deepest, own_values, search, sized, usual_space
from deepmrs.training import build_model

SMALL = {'basis': {'simulate': {'names': ['NAA', 'Cr', 'GPC'], 'te1': .011, 'te2': .019, 'points': 256, 'dwell_time': 5e-4}}, 'priors': 'paper', 'noise_sd': .4, 'points': 128, 'batch_size': 64,
         'spectra_per_epoch': 256, 'validation': 64, 'learning_rate': 3e-3, 'max_epochs': 30, 'encoder': {'name': 'convnet', 'channels': [16, 24, 32, 40, 48]}}
SPACE = {'learning_rate': {'low': 1e-3, 'high': 1e-2, 'log': True}, 'width': [.5, 1.]}
quiet = dict(say=lambda text: None, epochs=1)


def test_the_judge_knows_truth_and_prior():
    "The middle of the prior has an error of about 1 in the amounts; the truth has none, and the noise alone as residual"
    config = read_run(SMALL)
    parts = ingredients(config)
    judge = Judge(config, parts, 600)
    sim = parts.simulator
    truth = sim(600, torch.Generator().manual_seed(2_000_003)).params
    assert judge(lambda fids: truth)['amounts'] == 0 and abs(judge(lambda fids: truth)['residual'] - 1) < .03
    middle = judge(lambda fids: sim.moments()[0].expand(len(fids), -1))
    assert abs(middle['amounts'] - 1) < .06 and middle['residual'] > 2


def test_what_is_judged_does_not_depend_on_what_is_searched():
    "Same spectra and same numbers whatever the batch size, the learning rate or the price of the truncation time"
    numbers = []
    for changes in ({}, {'batch_size': 16, 'learning_rate': 1e-4}, {'reg_weight': 7.}):
        config = read_run(SMALL | {'macromolecules': 'regularised', 'simulated_macromolecules': 'summed'} | changes)
        parts = ingredients(config)
        model, _ = build_model(parts.decoder, parts.priors, .4, encoder_options={'channels': [16, 24, 32]}, points=128, extras=['truncation'])
        numbers.append(Judge(config, parts, 64)(model))
    assert numbers[0] == numbers[1] == numbers[2] and all(map(math.isfinite, numbers[0].values()))


@pytest.mark.parametrize('name', ENCODERS)
def test_every_size_is_an_encoder(name):
    low, high = deepest(name, 128)
    wide = [sum(p.numel() for p in make_encoder(name, 128, 7, **sized(name, low, w)).parameters()) for w in (.25, .5)]
    deep = [sum(p.numel() for p in make_encoder(name, 128, 7, **sized(name, d, .25)).parameters()) for d in (low, high)]
    assert wide[0] < wide[1] and (high == low or deep[0] != deep[1])
    usual = make_encoder(name, 1024, 7, **sized(name)), make_encoder(name, 1024, 7)
    assert sum(p.numel() for p in usual[0].parameters()) == sum(p.numel() for p in usual[1].parameters())


def test_a_search_is_resumed_and_never_mixed(tmp_path):
    first = search(SMALL, tmp_path/'s', space=SPACE, trials=2, **quiet)
    assert first.table['trial'].tolist() == [0, 1] and first.table.learning_rate[0] == pytest.approx(3e-3) and first.table.width[0] == 1
    more = search(SMALL, tmp_path/'s', space=SPACE, trials=4, resume=True, **quiet)
    assert len(more.table) == 4 and more.table.value[:2].tolist() == pytest.approx(first.table.value.tolist()) and more.table.learning_rate.nunique() == 4
    assert len(search(SMALL, tmp_path/'s', space=SPACE, trials=3, resume=True, **quiet).table) == 4  # enough already
    for kw, word in ((dict(space={'width': [.5]}), 'another space'), (dict(space=SPACE, objective='amounts'), 'another objective')):
        with pytest.raises(InputError, match=word): search(SMALL, tmp_path/'s', resume=True, **kw, **quiet)
    with pytest.raises(InputError, match='another run'): search(SMALL | {'noise_sd': 1.}, tmp_path/'s', space=SPACE, resume=True, **quiet)
    with pytest.raises(InputError, match='earlier search'): search(SMALL, tmp_path/'s', space=SPACE, **quiet)


def test_the_best_is_a_run_file_that_may_lie_anywhere(tmp_path):
    from deepmrs.basis import Basis
    from deepmrs.io import write_basis
    from deepmrs.runs import run_basis
    write_basis(run_basis(read_run(SMALL)), tmp_path/'b.npz')
    (tmp_path/'run.json').write_text(json.dumps(SMALL | {'basis': 'b.npz'}))
    found = search(tmp_path/'run.json', tmp_path/'deep/er', space=SPACE, trials=2, **quiet)
    best = read_run(found.out/'best.json')
    table = pd.read_csv(found.out/'trials.csv')
    top = table.loc[table.value.idxmin()]
    assert best.find(best.basis.path) == (tmp_path/'b.npz').resolve() and best.max_epochs == 30 and best.learning_rate == pytest.approx(top.learning_rate)
    assert best.encoder['channels'] == [round(top.width*c) for c in (16, 24, 32, 40, 48)] or best.encoder['channels'][:2] == [round(top.width*c) for c in (16, 24)]


def test_a_trial_that_fails_is_noted_and_the_search_goes_on(tmp_path):
    found = search(SMALL, tmp_path/'s', space={'encoder.channels': [[16, 24, 32], [4]*9], 'learning_rate': [1e-3, 3e-3]}, trials=6, **quiet)
    failed = found.table[found.table.status == 'failed']
    assert len(failed) and failed.note.str.contains('too few').all() and (found.table.status == 'complete').any() and found.best['encoder']['channels'] == [16, 24, 32]
    with pytest.raises(InputError, match='No trial was completed: .*too few'): search(SMALL, tmp_path/'t', space={'encoder.channels': [[4]*9]}, trials=1, **quiet)


def test_measured_spectra_have_no_truth(tmp_path):
    parts = ingredients(read_run(SMALL))
    write_spectra(parts.simulator.spectra(40)[0], tmp_path/'found.npz')
    own = SMALL | {'data': [str(tmp_path/'found.npz')]} | ({'prepare': {'water': False, 'aligned': False, 'phased': False}} if 'prepare' in type(read_run(SMALL)).model_fields else {})
    with pytest.raises(InputError, match='no truth'): search(own, tmp_path/'s', space=SPACE, objective='amounts', **quiet)
    found = search(own, tmp_path/'s', space=SPACE, trials=1, **quiet)
    assert found.objective == 'residual' and found.table.amounts.isna().all() and 0 < found.value < 3


def test_time_is_kept(tmp_path):
    found = search(SMALL, tmp_path/'s', space=SPACE, trials=50, minutes=.05, **quiet)
    assert 1 <= len(found.table) < 50


def test_own_values_and_usual_space():
    config = read_run(SMALL)
    assert own_values(usual_space(config), config) == {'learning_rate': 3e-3, 'batch_size': 64, 'depth': 5, 'width': 1.}
    assert 'reg_weight' in usual_space(read_run(SMALL | {'macromolecules': 'regularised'})) and 'reg_weight' not in usual_space(config)
    strange = read_run(SMALL | {'encoder': {'name': 'convnet', 'channels': [7, 9]}})
    assert own_values(usual_space(strange), strange) == {'learning_rate': 3e-3, 'batch_size': 64}


def test_without_optuna(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, 'optuna', None)
    with pytest.raises(InputError, match=r"pip install 'deepmrs\[search\]'"): search(SMALL, tmp_path/'s')
    assert not (tmp_path/'s').exists()


def test_files_of_several_runs_and_slips(tmp_path):
    file = tmp_path/'two.json'
    file.write_text(json.dumps({'common': SMALL, 'runs': {'a': {}, 'b': {'seed': 1}}}))
    with pytest.raises(InputError, match=r'several runs \(a, b\)'): search(file, tmp_path/'s', **quiet)
    with pytest.raises(InputError, match='no run c'): search(file, tmp_path/'s', name='c', **quiet)
    with pytest.raises(InputError, match='no key "batchsize"'): search(SMALL | {'batchsize': 3}, tmp_path/'s', **quiet)
    with pytest.raises(InputError, match="can't be searched"): search(SMALL, tmp_path/'s', space={'points': [64, 128]}, **quiet)
    assert not (tmp_path/'s').exists()
    assert len(search(file, tmp_path/'s', name='b', space=SPACE, trials=1, **quiet).table) == 1
