"Run files: every slip is one sentence that names the key; defaults are those of train."
import dataclasses
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

from deepmrs.config import RunConfig, read_run
from deepmrs.core import InputError
from deepmrs.training import Settings, train

GOOD = {'basis': 'a.basis'}
SLIPS = [
    ({'batchsize': 1}, 'no key "batchsize"; did you mean "batch_size"?'), ({'zzz': 1}, 'no key "zzz"; there are basis'), ({'val_Sanity ': True}, 'no key "val_Sanity "'),
    ({'batch_size': '64'}, '"batch_size" must be a whole number, not "64"'), ({'batch_size': True}, '"batch_size" must be a whole number'), ({'batch_size': 0}, '"batch_size" must be above 0'),
    ({'batch_size': None}, '"batch_size" must be a whole number, not null'), ({'max_epochs': 2.5}, '"max_epochs" must be a whole number'), ({'learning_rate': 'fast'}, '"learning_rate" must be a number'),
    ({'learning_rate': 0.}, 'above 0'), ({'learning_rate': 5.}, 'below 1'), ({'points': 4}, 'at least 8'), ({'patience': -1}, '"patience"'), ({'out': 3}, '"out" must be text in quotes'),
    ({'progress': 'yes'}, '"progress" must be true or false'), ({'data': 'a.nii'}, '"data" must be a list'), ({'data': [1]}, 'must be text'), ({'preset': 'brain'}, '"preset" must be "none", "brain-3t"'),
    ({'macromolecules': 'clasical'}, 'did you mean "classical"'), ({'baseline': 'stif'}, '"baseline" must be off'), ({'baseline': -2}, '"baseline" must be off'), ({'baseline': True}, '"baseline"'),
    ({'priors': 3}, '"priors" must be'), ({'priors': {'shift': [1]}}, 'A prior is'), ({'priors': {'from': 'brian'}}, '"priors" must be'), ({'noise_sd': -1}, '"noise_sd" must be'),
    ({'noise_sd': [1, 2, 3]}, '"noise_sd" must be'), ({'noise': 'pink'}, '"noise" must be'), ({'encoder': 'cnn'}, '"encoder" must be one of'), ({'encoder': {}}, '"encoder" must be a name'),
    ({'encoder': {'name': 'mlp', 'depth': 6}}, 'no option "depth"'), ({'schedule': 'step'}, 'did you mean "steps"'), ({'precision': 32}, '"precision" must be'), ({'window': [4.2, .2]}, '"window" must be'),
    ({'basis': ''}, '"basis" must be a path'), ({'basis': {}}, '"basis" must have one of'), ({'basis': {'path': 'a', 'simulate': {}}}, '"basis" must have one of'),
    ({'basis': {'simulate': {'te': 1}}}, 'no key "basis.simulate.te"'), ({'basis': {'simulate': {'sequence': 'pres'}}}, 'did you mean "press"'), ({'basis': {'pth': 'a'}}, 'did you mean "path"'),
    ({'prepare': {'watr': False}}, 'did you mean "water"'), ({'prepare': {'water_band': [5, 4]}}, '"prepare.water_band" must be [low, high]'), ({'prepare': {'min_snr': 0}}, '"prepare.min_snr" must be above 0'),
    ({'augment': {'copies': 4}}, 'no key "augment.copies"'), ({'augment': {'share': 2.}}, '"augment.share" must be at most 1'), ({'held_out': -1}, '"held_out" must be at least 0'),
    ({'acquisition': {'dwell': 1.}}, 'did you mean "dwell_time"'), ({'acquisition': 5}, '"acquisition" must be an object'), ({'acquisition': {'points': 0}}, '"acquisition.points" must be above 0')]


@pytest.mark.parametrize('slip, words', SLIPS, ids=[json.dumps(s) for s, _ in SLIPS])
def test_slips(slip, words):
    with pytest.raises(InputError) as e: read_run(GOOD | slip)
    said = str(e.value)
    assert words in said and '\n' not in said and 'pydantic' not in said and said.count('; did you mean') <= 1, said


def test_missing_and_more():
    with pytest.raises(InputError, match='"basis" is needed'): read_run({})
    with pytest.raises(InputError, match=r'and 2 more'): read_run(GOOD | {'batch_size': 0, 'max_epochs': 0, 'seeds': 1})


@pytest.mark.parametrize('text, word', [('{', 'not JSON'), ('[]', 'one object'), ('"x"', 'one object'), ('', 'not JSON'), ('{"basis": "a", "basis": "b"}', 'twice')])
def test_files(tmp_path, text, word):
    f = tmp_path/'my run.json'
    f.write_text(text)
    with pytest.raises(InputError, match=word) as e: read_run(f)
    assert 'my run.json' in str(e.value)
    with pytest.raises(InputError, match='check the path'): read_run(tmp_path/'none.json')


@pytest.mark.parametrize('text', ['['*100_000, '{"points": ' + '9'*5000 + '}'])
def test_files_that_json_itself_gives_up_on(tmp_path, text):
    (tmp_path/'a.json').write_text(text)
    with pytest.raises(InputError, match='a.json is no run file'): read_run(tmp_path/'a.json')


def test_a_text_that_no_file_can_hold(tmp_path):
    (tmp_path/'a.json').write_text('{"basis": "\\ud800"}')
    with pytest.raises(InputError, match='half a character'): read_run(tmp_path/'a.json')
    (tmp_path/'b.json').write_text('{"basis": "\\ud83e\\udde0.basis"}')  # a whole pair
    assert read_run(tmp_path/'b.json').basis.path.endswith('🧠.basis')


def test_paths_are_beside_the_run_file(tmp_path):
    (tmp_path/'a.basis').write_text('')
    (tmp_path/'run.json').write_text(json.dumps(GOOD))
    cfg = read_run(tmp_path/'run.json', max_epochs=2)
    assert cfg.find(cfg.basis.path) == tmp_path/'a.basis' and cfg.max_epochs == 2


def test_defaults_are_those_of_train():
    cfg = read_run(GOOD)
    for f in dataclasses.fields(Settings): assert getattr(cfg, f.name) == f.default, f.name
    for name, p in inspect.signature(train).parameters.items():
        if name in RunConfig.model_fields and name not in ('basis', 'encoder'): assert getattr(cfg, name) == p.default, name
    assert cfg.encoder['name'] == inspect.signature(train).parameters['encoder'].default


def test_schema_describes_every_key():
    s = RunConfig.schema()
    assert set(s['properties']) == set(RunConfig.model_fields) and s['additionalProperties'] is False
    assert all(p.get('description') for p in s['properties'].values()) and {'BasisSource', 'SimulatedBasis', 'AcquisitionSource'} <= set(s['$defs'])
    refs = [r.split('"')[0] for r in json.dumps(s).split('#/$defs/')[1:]]
    assert all(r in s['$defs'] for r in refs)


def test_every_key_round_trips():
    full = {'basis': {'simulate': {'te1': .011, 'te2': .019, 'names': ['NAA', 'Cr']}}, 'data': ['x.nii.gz'], 'acquisition': {'dwell_time': 2.5e-4, 'points': 1024}, 'preset': 'brain-3t', 'macromolecules': 'summed',
            'baseline': 3, 'priors': {'from': 'brain', 'shift': [-2, 2]}, 'noise_sd': [1, 2], 'encoder': {'name': 'mlp', 'widths': [32]}, 'window': [0.2, 4.2], 'minutes': 5, 'precision': 'bf16', 'clip': 1}
    cfg = read_run(full)
    assert cfg.basis.simulate.te2 == .019 and cfg.encoder['widths'] == [32] and cfg.minutes == 5.


def test_training_needs_no_pydantic():
    "Training must start where only torch, Lightning and numpy's family are installed"
    code = ('import sys\nfor m in ("pydantic", "nibabel", "nifti_mrs", "ipywidgets", "typer", "h5py"): sys.modules[m] = None\n'
            'import deepmrs.training, deepmrs.fitting, deepmrs.spins\n')
    subprocess.run([sys.executable, '-c', code], check=True, cwd=Path(__file__).parents[1])
