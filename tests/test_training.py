"Training: it learns, it resumes exactly, it saves and loads bit for bit, and it refuses in words."
import json
import math
import signal
import sys
import warnings

import pytest
import torch
from torch import nn

from deepmrs.basis import Basis
from deepmrs.config import read_run
from deepmrs.core import Acquisition, InputError, Spectra
from deepmrs.fitting import fit
from deepmrs.model import make_decoder
from deepmrs.quantify import quantify
from deepmrs.simulate import Simulator
from deepmrs.training import Ensemble, Settings, build_model, correlation, get_priors, load_model, mixed_seed, read_log, shortened, train
import deepmrs.training as training

ACQ = Acquisition(5e-4, 123.2, 512, echo_time=0.03)
LINES = {'NAA': [(2.008, 3)], 'Cr': [(3.027, 3), (3.913, 2)], 'GPC': [(3.212, 9)]}
PRIORS = {'amplitudes': [[3., 2., .5], [12., 9., 3.]], 'shift': [-3., 3.], 'lorentzian': [2., 12.], 'phase': [-.3, .3]}
TINY = dict(points=256, encoder_options={'channels': [16, 24, 32, 40]}, batch_size=64, spectra_per_epoch=640, max_epochs=3, learning_rate=3e-3, schedule='cosine', validation=128,
            progress=False, log_every=5)


def toy(acq=ACQ):
    t = acq.time_axis(dtype=torch.float64)
    return Basis(torch.stack([sum(h*torch.exp((2j*math.pi*acq.to_hz(q) - 3)*t) for q, h in ls) for ls in LINES.values()]), list(LINES), acquisition=acq)


def quick(**changes):
    "A model after a few steps"
    return train(toy(), **{**TINY, 'priors': PRIORS, 'noise_sd': 2., 'max_epochs': 1, **changes})


def simulated(model, n=64, seed=3):
    return Simulator(model.decoder, get_priors(PRIORS, model.decoder), 2.)(n, torch.Generator().manual_seed(seed))


def state(model): return {k: v.clone() for k, v in model.state_dict().items()}


def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    "(model after seconds of training, its folder)"
    out = tmp_path_factory.mktemp('model')
    return train(toy(), out=out, **{**TINY, 'priors': PRIORS, 'noise_sd': 2., 'max_epochs': 8, 'spectra_per_epoch': 6400}), out


def test_learns(trained):
    model, out = trained
    b = simulated(model, 1000)
    x = model(b.fids)
    for i in (0, 1, 2, 3, 5):
        assert torch.corrcoef(torch.stack([x[:, i], b.params[:, i]]))[0, 1] > .9, model.layout.labels[i]
    mse = lambda p: torch.view_as_real(model.decoder(p) - b.fids).square().mean()
    assert mse(x) < 0.2*mse(model.head.mean.expand_as(x)) and mse(b.params)*0.95 < mse(x)
    f = fit(model.decoder, b.fids, x)
    assert f.converged.all() and f.steps.double().mean() <= fit(model.decoder, b.fids).steps.double().mean()
    log = read_log(out)
    assert log.val_loss.dropna().iloc[-1] < log.val_loss.dropna().iloc[0] and log.spectra_seen.max() == 8*6400 and 'train_loss' in log


def test_any_scale_any_chunk(trained):
    model, _ = trained
    b = simulated(model)
    x, scale = model(b.fids), torch.where(model.linear, 3e7, 1.)
    assert torch.allclose(model(3e7*b.fids)/scale, x, rtol=1e-3, atol=1e-4)
    assert torch.allclose(model(b.fids, chunk=7), x, rtol=1e-4, atol=1e-4)
    assert torch.allclose(model(b.fids[:, :256]), x, rtol=1e-4, atol=1e-4)  # it reads no further
    assert model(b.fids[:0]).shape == (0, model.layout.size) and model(0*b.fids).isfinite().all()
    with pytest.raises(InputError, match='256 points'): model(b.fids[:, :100])


def test_save_load_is_exact(trained, tmp_path):
    model, out = trained
    b = simulated(model)
    for path in (out, *model.save(tmp_path/'named.safetensors')):
        again = load_model(path)
        assert same(state(again), state(model)) and torch.equal(again.decoder.fids, model.decoder.fids) and torch.equal(again(b.fids), model(b.fids))
        assert again.names == model.names and again.acquisition == model.acquisition and again.preset == model.preset
    files = again.save(tmp_path/'twice')
    assert same(state(load_model(tmp_path/'twice')), state(model)) and all(f.exists() for f in files)
    assert load_model(tmp_path/'twice').card['checksum'] == again.card['checksum'] == model.card['checksum']


@pytest.mark.parametrize('choice', [dict(preset='brain-3t', priors='brain'), dict(macromolecules='summed', priors='brain'), dict(macromolecules='measured'), dict(macromolecules='parametrised', priors='brain')])
def test_save_load_of_each_model(choice, tmp_path):
    acq = ACQ.replace(points=1024)
    measured = torch.exp((2j*math.pi*acq.to_hz(1.3) - 60)*acq.time_axis()) if choice.get('macromolecules') == 'measured' else None
    model = train(toy(acq), out=tmp_path, measured=measured, **{**TINY, 'max_epochs': 1, 'spectra_per_epoch': 128, **choice})
    again = load_model(tmp_path)
    x = torch.randn(3, 1024, dtype=torch.complex64)
    p = model(x)
    assert torch.equal(again(x), p) and torch.equal(again.decoder(p), model.decoder(p)) and again.layout.labels == model.layout.labels
    assert again.preset == model.preset and again.decoder.priors == model.decoder.priors
    shorter = model.decoder_for(acq.replace(points=800))
    assert shorter.acquisition.points == 800 and shorter.layout.labels == model.layout.labels and model.decoder_for(acq) is model.decoder
    rows = model.head.mean[None]
    assert torch.allclose(shorter(rows)[:, 1:600], model.decoder(rows)[:, 1:600], atol=.03*float(model.decoder(rows).abs().max()))


def test_resume_is_exact(tmp_path):
    "Two epochs and two more are four, bit for bit"
    whole = quick(max_epochs=4, out=tmp_path/'whole', schedule='constant')
    quick(max_epochs=2, out=tmp_path/'parts', schedule='constant')
    parts = quick(max_epochs=4, out=tmp_path/'parts', schedule='constant', resume=True)
    assert same(state(whole), state(parts)) and parts.card['training']['steps'] == 40
    assert read_log(tmp_path/'parts').val_loss.notna().sum() == 4
    assert not same(state(whole), state(quick(max_epochs=4, schedule='constant', seed=1)))


def test_a_training_begun_anew_is_no_mixture(tmp_path, monkeypatch):
    "Logs are those of the new training, and nothing resumes from the old one; the old model stays until the new one is done"
    quick(max_epochs=3, out=tmp_path)
    old = state(load_model(tmp_path))
    def stop(self, batch, i): raise ValueError('power cut')
    with monkeypatch.context() as m:
        m.setattr(training.LitModel, 'training_step', stop)
        with pytest.raises(ValueError, match='power cut'): quick(max_epochs=2, seed=1, out=tmp_path)
    with pytest.raises(InputError, match='no checkpoint'): quick(max_epochs=2, seed=1, out=tmp_path, resume=True)
    assert same(state(load_model(tmp_path)), old)
    new = quick(max_epochs=2, seed=1, out=tmp_path)
    assert read_log(tmp_path).val_loss.notna().sum() == 2 and same(state(load_model(tmp_path)), state(new)) and not same(state(new), old)


def test_interrupt_keeps_a_checkpoint(tmp_path, monkeypatch):
    whole = quick(max_epochs=3, out=tmp_path/'whole')
    step, before = training.LitModel.training_step, signal.getsignal(signal.SIGINT)
    def stopping(self, batch, i):
        if self.global_step == 13: raise KeyboardInterrupt
        return step(self, batch, i)
    monkeypatch.setattr(training.LitModel, 'training_step', stopping)
    with pytest.raises(KeyboardInterrupt, match='resume=True'): quick(max_epochs=3, out=tmp_path/'cut')
    assert signal.getsignal(signal.SIGINT) is before  # the next interrupt works too
    monkeypatch.setattr(training.LitModel, 'training_step', step)
    model = quick(max_epochs=3, out=tmp_path/'cut', resume=True)
    assert model.card['training']['steps'] == 30 and same(state(model), state(whole))


@pytest.mark.parametrize('limit', [100, 20_000, 60_000])
def test_a_full_disk_is_said_in_a_sentence(limit, tmp_path):
    "A file can't grow over the limit, as on a full disk: no traceback, no checkpoint or model that was cut short, and the one before stays"
    import os, subprocess
    from pathlib import Path
    from deepmrs.io import write_basis
    write_basis(toy(), tmp_path/'b.npz')
    (tmp_path/'run.json').write_text(json.dumps({'basis': 'b.npz', 'points': 256, 'spectra_per_epoch': 128, 'validation': 64, 'batch_size': 64, 'max_epochs': 1, 'encoder': {'name': 'mlp', 'widths': [32, 16]}, 'progress': False}))
    code = 'import resource, signal, sys\nimport deepmrs.training\nfrom deepmrs.cli import main\nn = int(sys.argv.pop())\nresource.setrlimit(resource.RLIMIT_FSIZE, (n, n))\nmain()'
    run = lambda n: subprocess.run([sys.executable, '-c', code, 'train', str(tmp_path/'run.json'), str(n)], capture_output=True, text=True,
                                   env=os.environ | {'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(Path(__file__).parents[1])})
    p = run(limit)
    assert p.returncode == 1 and p.stderr.startswith('deepmrs: ') and len(p.stderr.splitlines()) == 1 and 'File too large' in p.stderr, p.stderr
    assert not [f for f in (tmp_path/'run').rglob('*') if f.suffix in ('.ckpt', '.safetensors') or f.name.startswith('.partial')]
    if limit > 100: return
    assert run(10**7).returncode == 0
    before = (tmp_path/'run/model.safetensors').read_bytes()
    assert run(20_000).returncode == 1 and (tmp_path/'run/model.safetensors').read_bytes() == before


@pytest.mark.parametrize('spoil', ['cut', 'empty', 'text', 'other'])
def test_a_damaged_checkpoint_is_named(spoil, tmp_path):
    quick(out=tmp_path)
    last, more = tmp_path/'checkpoints/last.ckpt', {}
    whole = last.read_bytes()
    if spoil == 'other': more = dict(encoder_options={'channels': [16, 24, 32, 48]})
    else: last.write_bytes({'cut': whole[:len(whole)//2], 'empty': b'', 'text': b'not a checkpoint'}[spoil])
    with pytest.raises(InputError, match='of another network' if spoil == 'other' else 'damaged or cut short') as e: quick(out=tmp_path, resume=True, max_epochs=2, **more)
    assert str(last) in str(e.value) and '\n' not in str(e.value)


def test_early_stopping_and_time(tmp_path):
    model = quick(max_epochs=50, patience=2, learning_rate=1e-30, schedule='constant')
    assert model.card['training']['steps'] < 200
    model = quick(max_epochs=10_000, minutes=0.03, out=tmp_path)
    assert 1 < model.card['training']['seconds'] < 8 and model.card['training']['steps'] > 5


def test_on_measured_spectra():
    model = quick()
    b = simulated(model, 300)
    own = train(toy(), Spectra(5e5*b.fids, acquisition=ACQ), **{**TINY, 'priors': PRIORS, 'max_epochs': 10, 'spectra_per_epoch': 1280, 'points': 256})
    x = own(5e5*b.fids)
    assert torch.corrcoef(torch.stack([x[:, 0], b.params[:, 0]]))[0, 1] > .8 and own.card['training']['data'] == '300 measured'
    with pytest.raises(InputError, match='needs the truth'): train(toy(), Spectra(b.fids, acquisition=ACQ), **{**TINY, 'priors': PRIORS, 'parameter_weight': 1.})
    with pytest.raises(InputError, match='at least 2'): train(toy(), Spectra(b.fids[:1], acquisition=ACQ), **{**TINY, 'priors': PRIORS})


@pytest.mark.parametrize('changes', [dict(precision='bf16'), dict(normalise='none'), dict(parameter_weight=1., residual_weight=0.), dict(noise='fading'), dict(noise_sd=(1., 4.)), dict(noise_sd=None),
                                     dict(noise_sd=0.), dict(window=(1.5, 4.2)), dict(clip=1.), dict(schedule='steps'), dict(spectra_per_epoch=64), dict(validation=7), dict(encoder='mlp', encoder_options={'widths': [32]})],
                         ids=str)
def test_settings(changes):
    model = quick(**changes)
    assert math.isfinite(model.card['training']['validation_loss']) and model(simulated(model).fids).isfinite().all() and model(simulated(model).fids).dtype == torch.float32


class Own(nn.Module):
    "An encoder of one's own"
    def __init__(self, points, outputs, width=8):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(2*points, width), nn.GELU(), nn.Linear(width, outputs))
    def forward(self, x): return self.net(x)


def test_own_encoder(tmp_path, monkeypatch):
    model = quick(encoder=Own, encoder_options={'width': 12}, out=tmp_path/'class')
    again = load_model(tmp_path/'class')
    assert isinstance(again.encoder, Own) and same(state(model), state(again))
    monkeypatch.delattr(sys.modules[__name__], 'Own')
    with pytest.raises(InputError, match='Own; give it'): load_model(tmp_path/'class')
    monkeypatch.undo()
    net = Own(256, model.layout.size, 5)
    instance = quick(encoder=net, encoder_options=None, out=tmp_path/'instance')
    assert instance.encoder is net
    with pytest.raises(InputError, match='encoder='): load_model(tmp_path/'instance')
    assert same(state(load_model(tmp_path/'instance', encoder=Own(256, model.layout.size, 5))), state(instance))
    with pytest.raises(InputError, match='does not fit'): load_model(tmp_path/'instance', encoder=Own(256, model.layout.size, 6))


def test_own_decoder(tmp_path):
    dec = make_decoder(toy(), preset='none')[0]
    model = train(decoder=dec, out=tmp_path, **{**TINY, 'priors': PRIORS, 'max_epochs': 1})
    with pytest.raises(InputError, match='decoder='): load_model(tmp_path)
    assert same(state(load_model(tmp_path, decoder=dec)), state(model))
    with pytest.raises(InputError, match='one of the two'): train(toy(), decoder=dec)


def damaged(folder, what):
    numbers, card = folder/'model.safetensors', folder/'model.json'
    about = json.loads(card.read_text())
    if what == 'numbers': numbers.write_bytes(numbers.read_bytes()[:-4] + b'\0\0\0\1')
    elif what == 'short': numbers.write_bytes(numbers.read_bytes()[:100])
    elif what == 'no numbers': numbers.unlink()
    elif what == 'no card': card.unlink()
    elif what == 'not json': card.write_text('{')
    elif what == 'list': card.write_text('[]')
    else: card.write_text(json.dumps(about | what))


@pytest.mark.parametrize('what, word', [('numbers', 'checksum'), ('short', 'checksum'), ('no numbers', 'no model file'), ('no card', 'no model file'), ('not json', 'not a model card'), ('list', 'not a model card'),
                                        ({'format': 2}, 'update it'), ({'format': None}, 'names no format'), ({'layout': {'amplitudes': ['NAA']}}, 'not those of its decoder'), ({'names': ['NAA']}, 'layout|names|FID'),
                                        ({'acquisition': {}}, 'does not fit'), ({'encoder': {'name': 'mlp', 'options': {}}}, 'does not fit'), ({'points': 128}, 'does not fit|too few'), ({'preset': {}}, 'does not fit')], ids=str)
def test_damaged_models(trained, tmp_path, what, word):
    trained[0].save(tmp_path)
    damaged(tmp_path, what)
    with pytest.raises(InputError, match=word) as e: load_model(tmp_path)
    assert '\n' not in str(e.value)


@pytest.mark.parametrize('changes, word', [(dict(nucleus='31P', centre_ppm=0.), '31P'), (dict(spectrometer_frequency=127.7), 'this field'), (dict(dwell_time=2.5e-4), 'resample'), (dict(points=200), 'method fit'),
                                           (dict(echo_time=.068), 'echo time'), (dict(centre_ppm=4.7), 'centre')])
def test_data_that_do_not_fit(trained, changes, word):
    acq = ACQ.replace(**changes)
    with pytest.raises(InputError, match=word) as e: trained[0].check_data(Spectra(torch.ones(1, acq.points), acquisition=acq))
    assert 'method fit' in str(e.value)


def test_data_that_fit(trained):
    for changes in ({}, dict(echo_time=.031), dict(echo_time=None), dict(points=2048), dict(spectrometer_frequency=123.9), dict(centre_ppm=4.66)):
        acq = ACQ.replace(**changes)
        trained[0].check_data(Spectra(torch.ones(1, acq.points), acquisition=acq))


@pytest.mark.parametrize('call, word', [(lambda: train(), 'one of the two'), (lambda: quick(batchsize=3), 'no setting batchsize'), (lambda: quick(schedule='linear'), 'schedule'), (lambda: quick(batch_size=0), 'above 0'),
                                        (lambda: quick(resume=True), 'out='), (lambda: quick(points=4), 'points is 4'), (lambda: quick(priors='mine'), 'brain, paper'), (lambda: quick(priors={'shft': [0, 1]}), 'name shft'),
                                        (lambda: quick(normalise='max'), 'rms or none'), (lambda: quick(precision='16'), '32 or bf16'), (lambda: quick(residual_weight=0.), 'nothing to learn')])
def test_refusals(call, word):
    with pytest.raises(InputError, match=word): call()


def test_resume_without_a_checkpoint(tmp_path):
    with pytest.raises(InputError, match='no checkpoint'): quick(out=tmp_path, resume=True)
    with pytest.raises(InputError, match='no logs'): read_log(tmp_path)


def test_default_model():
    "The shipped model loads and reads a spectrum of its own making; without one the message says so"
    try: model = load_model()
    except InputError as e:
        assert 'default model' in str(e)
        pytest.skip('no default model in this installation')
    x = model.head.mean.expand(2, -1)
    assert model(model.decoder(x)).isfinite().all()


def test_nothing_global(tmp_path):
    torch.manual_seed(5)
    rng, bench = torch.get_rng_state(), torch.backends.cudnn.benchmark
    with warnings.catch_warnings(record=True): quick(out=tmp_path)
    assert torch.equal(torch.get_rng_state(), rng) and torch.backends.cudnn.benchmark == bench and torch.get_default_dtype() == torch.float32


def test_shortened_decoder_is_the_same_model():
    dec = make_decoder(toy(), preset='none')[0]
    x = dec.layout.join({'amplitudes': torch.rand(3, 3), 'shift': 2.})
    assert torch.allclose(shortened(dec, 100)(x), dec(x)[:, :100], atol=1e-5)
    brain = make_decoder(toy(ACQ.replace(points=1024)))[0]
    assert shortened(brain, 100) is brain


def test_seeds_differ():
    low = {mixed_seed(s, i) & 0xffffffff for s in range(50) for i in range(200)}
    assert len(low) > 9990  # in the bits that a CPU's generator looks at
    assert all(0 <= mixed_seed(s, i) < 2**63 for s in (0, 7, 2**31) for i in (0, 2**40))


def simulated_from(model): return Simulator(model.decoder, get_priors('brain', model.decoder), 1.)(40, torch.Generator().manual_seed(0)).fids


def test_build_model_starts_at_the_prior():
    model, sim = build_model(make_decoder(toy(), preset='none')[0], PRIORS, 2., points=256, encoder_options={'channels': [8, 16]})
    with torch.no_grad():
        for p in model.encoder.out.parameters(): p.zero_()
    b = sim(500, torch.Generator().manual_seed(0))
    x = model(b.fids)
    assert torch.allclose(x[:, 3:].mean(0), model.head.mean[3:], atol=1e-3) and (x[:, :3].mean(0)/model.head.mean[:3] - 1).abs().max() < .2
    assert Settings().batch_size == 128


REG = dict(macromolecules='regularised', priors={'amplitudes': [[3., 2., .5], [12., 9., 3.]], 'shift': [-3., 3.], 'lorentzian': [2., 12.], 'phase': [-.3, .3], 'macromolecules': [[0.]*18, [1.]*18]})


def test_regularised_macromolecules(tmp_path):
    "One more output, the truncation time; saved and loaded with the rest; the decoder does not know of it"
    model = quick(out=tmp_path, **REG)
    P = model.layout.size
    x = model.decoder(model.head.mean.expand(5, -1))
    assert model.encoder.out.out_features == P + 1 and model(x).shape == (5, P) and model.truncates
    tr = model.truncation(x)
    assert tr.shape == (5,) and ((0 < tr) & (tr < .1)).all() and torch.allclose(model.truncation(1e4*x), tr, rtol=1e-3)
    again = load_model(tmp_path)
    assert torch.equal(again.truncation(x), tr) and torch.equal(again(x), model(x)) and again.card['training']['reg_weight'] == 3.
    assert read_log(tmp_path).truncation.dropna().between(0, .1).all()
    with pytest.raises(InputError, match='regularised'): quick().truncation(x)
    with pytest.raises(InputError, match='256 points'): model.truncation(x[:, :100])


def test_price_shortens_the_truncation():
    "The dearer it is, the shorter"
    tr = {}
    for weight in (0., 300.):
        model = quick(**REG, reg_weight=weight, max_epochs=8, spectra_per_epoch=1920, normalise='none')
        tr[weight] = float(model.truncation(simulated_with(model, .5)).mean())
    assert tr[300.] < .5*tr[0.]


def simulated_with(model, amount, n=100):
    "FIDs with this amount of each line"
    sim = Simulator(model.decoder, get_priors(REG['priors'] | {'macromolecules': [[amount]*18, [amount]*18]}, model.decoder), 2.)
    return sim(n, torch.Generator().manual_seed(0)).fids


@pytest.fixture(scope='module')
def unsure():
    "Two networks that state their error, on spectra of all qualities"
    return [quick(uncertainty=True, noise_sd=(.5, 20.), max_epochs=8, spectra_per_epoch=6400, seed=i) for i in range(2)]


def of_all_qualities(model, n=3000): return Simulator(model.decoder, get_priors(PRIORS, model.decoder), (.5, 20.))(n, torch.Generator().manual_seed(3))


def test_a_network_knows_its_error(unsure):
    model = unsure[0]
    b, P = of_all_qualities(model), model.layout.size
    s = model.uncertainty(b.fids)
    z = (model(b.fids) - b.params)/s
    assert model.outputs == 3*P == model.encoder.out.out_features and s.shape == (3000, P) and (s > 0).all()
    assert (z.square().mean(0).sqrt() - 1).abs().max() < .12
    for good in (b.noise_sd < 2, b.noise_sd > 10): assert (z[good].square().mean(0).sqrt() - 1).abs().max() < .45  # not on average only
    assert (s[b.noise_sd > 10].median(0).values > 1.5*s[b.noise_sd < 2].median(0).values).all()
    assert torch.allclose(model.uncertainty(1e5*b.fids)/torch.where(model.linear, 1e5, 1.), s, rtol=2e-3)


def test_a_mixture_of_members(unsure, tmp_path):
    pair, b = Ensemble(unsure), of_all_qualities(unsure[0], 200)
    means, sds = (torch.stack([f(m) for m in unsure]) for f in (lambda m: m(b.fids), lambda m: m.uncertainty(b.fids)))
    draws = means[:, 0] + sds[:, 0]*torch.randn(100_000, 2, means.shape[-1], generator=torch.Generator().manual_seed(0))
    assert torch.allclose(pair(b.fids), means.mean(0)) and torch.allclose(pair.uncertainty(b.fids)[0], draws.flatten(0, 1).std(0), rtol=.02)
    assert torch.allclose(pair.spread(b.fids), (means[0] - means[1]).abs()/2**.5, rtol=1e-3, atol=1e-4)
    pair.save(tmp_path)
    again = load_model(tmp_path)
    assert isinstance(again, Ensemble) and len(again) == 2 and torch.equal(again.uncertainty(b.fids), pair.uncertainty(b.fids)) and again.names == unsure[0].names
    assert again.check_data(Spectra(b.fids, acquisition=ACQ)) is not None and again.decoder_for(ACQ) is again.decoder and again.to('cpu').device.type == 'cpu'
    with pytest.raises(InputError, match='256|reads'): pair(b.fids[:, :100])


def test_ensembles_that_cannot_be(unsure):
    plain = quick()
    with pytest.raises(InputError, match='at least one'): Ensemble([])
    with pytest.raises(InputError, match='same parameters'): Ensemble([plain, quick(**REG)])
    mixed = Ensemble([plain, unsure[0]])
    assert not mixed.uncertain and mixed(simulated(plain).fids).isfinite().all()
    with pytest.raises(InputError, match='uncertainty=True'): mixed.uncertainty(simulated(plain).fids)


def test_errors_of_sums(unsure):
    "Its covariance: stated sds, correlations found in training; a sum's error is right on average"
    for model in (unsure[0], Ensemble(unsure)):
        b = of_all_qualities(model)
        C, e = model.covariance(b.fids), (model(b.fids) - b.params).double()
        assert torch.allclose(C.diagonal(dim1=-2, dim2=-1).sqrt().float(), model.uncertainty(b.fids), rtol=1e-4) and torch.linalg.eigvalsh(C[:100]).min() > 0
        for w in ([1., 1., 1., 0., 0., 0.], [1., -1., 0., 0., 0., 0.], [1., 0., 0., 0., -.3, 0.]):
            w = torch.tensor(w, dtype=torch.float64)
            assert abs(float(((e @ w)/torch.einsum('i,bij,j->b', w, C, w).sqrt()).square().mean().sqrt()) - 1) < .2


def test_errors_of_its_own_in_a_fit(unsure):
    "with_own_errors replaces the covariance only"
    model = unsure[0]
    b = of_all_qualities(model, 50)
    fisher = fit(model.decoder, b.fids, start=model(b.fids), max_steps=0)
    own = model.with_own_errors(b.fids, fisher)
    assert torch.allclose(own.sd.float(), model.uncertainty(b.fids), rtol=1e-4) and torch.equal(own.params, fisher.params) and not torch.allclose(own.sd, fisher.sd, rtol=.1)
    assert model.covariance(b.fids[:0]).shape == (0, 6, 6)


def test_correlations():
    z = torch.randn(50_000, 2, generator=torch.Generator().manual_seed(0)) @ torch.tensor([[1., .8], [0., .6]])
    R = correlation(z.T @ z, torch.tensor([True, False, True]))
    assert torch.allclose(R, torch.tensor([[1., 0., .8], [0., 1., 0.], [.8, 0., 1.]]), atol=.02)
    assert torch.linalg.eigvalsh(correlation(z[:1].T @ z[:1], torch.tensor([True, True]))).min() > 0  # even from one spectrum


def test_uncertainty_is_saved_logged_and_refused(tmp_path):
    model = quick(uncertainty=True, residual_weight=0., out=tmp_path, **REG)  # both extras at once
    b, log = simulated_with(model, .5), read_log(tmp_path)
    again = load_model(tmp_path)
    assert again.extras == ('truncation', 'sd') and torch.equal(again.correlation, model.correlation) and not torch.equal(model.correlation, torch.eye(len(model.correlation))) and torch.equal(again.uncertainty(b), model.uncertainty(b)) and torch.equal(again.truncation(b), model.truncation(b))
    assert log.error_over_sd.dropna().between(.1, 10).all() and again.card['training']['uncertainty'] is True
    with pytest.raises(InputError, match='uncertainty=True'): quick().uncertainty(b)
    with pytest.raises(InputError, match='needs the truth'): train(toy(), Spectra(b, acquisition=ACQ.replace(points=256)), **{**TINY, 'priors': PRIORS, 'uncertainty': True})


def test_fixed_parameters_have_no_error():
    fixed = {k: v for k, v in PRIORS.items() if k != 'phase'}
    model = quick(uncertainty=True, priors=fixed)
    assert (model.uncertainty(simulated(model).fids)[:, -1] == 0).all() and model.uncertainty(simulated(model).fids)[:, :-1].min() > 0


def test_models_of_earlier_versions_load(tmp_path):
    "Cards that say `truncates`, or nothing of extras"
    for extra, model in ((('truncation',), quick(**REG)), ((), quick())):
        _, card = model.save(tmp_path/f'm{len(extra)}')
        about = json.loads(card.read_text())
        del about['extras']
        card.write_text(json.dumps(about | ({'truncates': True} if extra else {})))
        again = load_model(tmp_path/f'm{len(extra)}')
        assert again.extras == extra and same(state(again), state(model))


def test_learning_rate_is_logged(tmp_path):
    quick(out=tmp_path, max_epochs=4, learning_rate=1e-2)
    rate = read_log(tmp_path).learning_rate.dropna()
    assert rate.iloc[0] == pytest.approx(1e-2, rel=.3) and rate.iloc[-1] < .2*rate.iloc[0] and len(rate) == 8


def test_start_from(trained, tmp_path):
    model, out = trained
    b = simulated(model, 500)
    still = train(toy(), start_from=model, **{**TINY, 'points': 999, 'priors': PRIORS, 'noise_sd': 2., 'max_epochs': 1, 'learning_rate': 1e-30, 'schedule': 'constant'})
    assert torch.equal(still(b.fids), model(b.fids)) and still.points == 256 and still.card['training']['start_from'] == model.card['checksum']
    grown = train(toy(), start_from=out, uncertainty=True, out=tmp_path, **{**TINY, 'priors': PRIORS, 'noise_sd': 2., 'max_epochs': 1, 'learning_rate': 1e-30, 'schedule': 'constant'})
    assert torch.allclose(grown(b.fids), model(b.fids), rtol=1e-5, atol=1e-5) and grown.outputs == 3*model.outputs and load_model(tmp_path).uncertain
    own = train(spectra=Spectra(b.fids, acquisition=ACQ), start_from=model, **{**TINY, 'max_epochs': 1, 'learning_rate': 1e-4})  # its decoder, too
    loss = lambda m: float(torch.view_as_real(m.decoder(m(b.fids)) - b.fids).square().mean())
    assert loss(own) < 1.1*loss(model) and not same(state(own), state(model))
    with pytest.raises(InputError, match='other parameters'): train(toy().select(['NAA', 'Cr']), start_from=model, **TINY)
    with pytest.raises(InputError, match='one of its members'): train(toy(), start_from=Ensemble([model]), **TINY)


def test_quantify_takes_the_errors_that_a_network_states(unsure):
    b = of_all_qualities(unsure[0], 60)
    data = Spectra(b.fids, acquisition=ACQ)
    for model in (unsure[0], Ensemble(unsure)):
        own, bound = quantify(data, model=model, method='network'), quantify(data, model=model, method='hybrid')
        assert torch.allclose(own.sd.float(), model.uncertainty(own.spectra.fids)[:, :3], rtol=1e-3) and 'states itself' in own.notes[-1] and 'states' not in ' '.join(bound.notes)
        assert torch.allclose(own.covariance, model.covariance(own.spectra.fids)[:, :3, :3], rtol=1e-3)


def test_a_training_that_diverges_says_so(tmp_path):
    with pytest.raises(InputError, match='diverged'): quick(out=tmp_path, learning_rate=1e30, max_epochs=2)


@pytest.mark.parametrize('window', [None, (.2, 4.2)])
def test_the_gradient_of_a_long_truncation_is_finite(window):
    from deepmrs.losses import Look, make_loss
    d = make_decoder(toy(), preset='none', macromolecules_kind='regularised')[0]
    x = torch.rand(3, d.layout.size).requires_grad_()
    tr = torch.tensor([1e-4, .1, .9], requires_grad=True)
    look = Look(d, x, d(torch.rand(3, d.layout.size)).detach(), torch.ones(3), noise=torch.ones(3), extras={'truncation': tr})
    make_loss(d, torch.ones(d.layout.size), 1., 0., window, regularised=3.)(look).backward()
    assert torch.isfinite(x.grad).all() and torch.isfinite(tr.grad).all()
