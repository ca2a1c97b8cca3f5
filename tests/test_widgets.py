"The widgets, by setting values: the drawn lines are what the decoder says."
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from deepmrs.config import RunConfig
from deepmrs.core import InputError, fid_to_spectrum
from deepmrs.decoder import Decoder, Lorentzian, Phase, Shift
from deepmrs.demo import compare
from deepmrs.model import adapt, make_decoder
from deepmrs.quantify import quantify
from deepmrs.simulate import Simulator, brain_priors
from deepmrs.spins import simulate_basis
from deepmrs.training import load_model

pytest.importorskip('ipywidgets', reason='needs the extra notebooks')
from deepmrs.widgets import browse, explore, explore_decoder, watch  # noqa: E402


@pytest.fixture(scope='module')
def result():
    basis = simulate_basis(te1=.011, te2=.019)
    decoder, _, _ = make_decoder(basis)
    spectra, _ = Simulator(decoder, brain_priors(decoder), noise_sd=4.).spectra(3, seed=5)
    fids = spectra.fids.clone()
    fids[0] = 0
    return quantify(spectra.replace(fids), basis)


def drawn(e, name): return np.array(e.lines[name].get_ydata())


def decoded(e):
    "What the decoder says in the frame of the picture"
    return (e.decoder.spectrum(e.params[None].float())[0]*e.frame).real.numpy()[e.picture.inside]


def test_begins_with_the_fit(result):
    e = explore(result)
    assert [v for _, v in e.picker.options] == [1, 2]  # the empty one can't be chosen
    assert e.params.equal(result.fit.params[1]) and len(e.sliders) == e.decoder.layout.size
    parts = result.spectrum(1)
    for name, want in {'data': parts['data'], 'fit': parts['fit'], 'baseline': parts['baseline'], 'NAA': parts['terms']['NAA']}.items():
        assert np.allclose(drawn(e, name), want.real.numpy()[e.picture.inside], atol=1e-3*float(parts['data'].abs().max())), name


@pytest.mark.parametrize('label', ['NAA', 'MM09', 'shift', 'lorentzian', 'gaussian', 'phase', 'first_order_phase', 'baseline re 3'])
def test_each_slider_moves_the_fit(result, label):
    e = explore(result)
    label = label if label in e.sliders else next(k for k in e.sliders if k.startswith('baseline re'))
    fit, data, residual, picture = drawn(e, 'fit'), drawn(e, 'data'), drawn(e, 'residual'), e.image.value
    s = e.sliders[label]
    s.value = s.value + .2*(s.max - s.value)
    assert e.params[e.decoder.layout.labels.index(label)] == s.value
    assert not np.array_equal(drawn(e, 'fit'), fit) and not np.array_equal(drawn(e, 'residual'), residual) and e.image.value != picture
    assert np.array_equal(drawn(e, 'data'), data)
    assert np.array_equal(drawn(e, 'fit'), decoded(e))


def test_rounding_by_the_browser_is_no_move(result):
    e = explore(result)
    before = e.params.clone()
    for s in e.sliders.values(): s.value = s.min + round((s.value - s.min)/s.step)*s.step
    assert e.params.equal(before)


def test_the_old_value_that_a_browser_sends_after_a_new_range_is_no_move(result):
    e = explore(result)
    label = next(k for k in e.sliders if k.startswith('baseline re'))
    s, far = e.sliders[label], e.params.clone()
    far[e.decoder.layout.labels.index(label)] = s.min - 100.
    old = s.value
    e.set(far)
    s.value = old + .4*s.step
    assert e.params.equal(far) and s.value == s.min
    s.value = old + 50*s.step  # a hand
    s.value = old
    assert e.params[e.decoder.layout.labels.index(label)] == old


def test_hide_and_show(result):
    e = explore(result)
    fit = drawn(e, 'fit')
    e.shows['NAA'].value = False
    assert not e.lines['NAA'].get_visible() and e.lines['Cr'].get_visible() and np.array_equal(drawn(e, 'fit'), fit)
    e.none.click()
    assert not any(e.lines[n].get_visible() for n in e.decoder.names)
    e.all.click()
    assert all(e.lines[n].get_visible() for n in e.decoder.names) and all(s.value for s in e.shows.values())


def test_refit_reset_and_pick(result):
    e = explore(result)
    start = e.params.clone()
    for n in ('GPC', 'PCho', 'Ins'): e.sliders[n].value = 0.
    e.sliders['shift'].value += 2.
    e.refit_button.click()
    K = e.decoder.linear
    assert ((e.params - start).abs()/result.fit.sd[1])[:K].max() < .2 and 'steps' in e.message.value
    assert e.current.fit.params.shape == (1, e.decoder.layout.size) and e.current.fit is not result.fit and 'tNAA' in e.table.value
    e.sliders['NAA'].value = 1.
    e.reset_button.click()
    assert e.params.equal(start) and np.isclose(e.sliders['NAA'].value, float(start[e.decoder.layout.labels.index('NAA')]))
    e.picker.value = 2
    assert e.params.equal(result.fit.params[2])
    assert np.allclose(drawn(e, 'data'), (fid_to_spectrum(result.spectra.fids[2])*e.frame).real.numpy()[e.picture.inside])
    assert result.fit.params[1].equal(start)  # the result is not touched


def test_display(result):
    e = explore(result)
    bundle = e._repr_mimebundle_()
    assert 'application/vnd.jupyter.widget-view+json' in bundle and bundle['image/png'] and bytes(e.image.value[:4]) == b'\x89PNG'
    before = bytes(e.image.value)
    e.sliders['Glu'].value += 3.
    assert bytes(e.image.value) != before


def test_decoder_alone_and_bare(result):
    full = explore_decoder(result.decoder)
    assert 'data' not in full.lines and drawn(full, 'fit').max() > 0
    d = result.decoder
    bare = Decoder(d.signals[0], d.acquisition, [Shift(-10, 10), Lorentzian(0, 50, 5.), Phase(), Shift(-3, 3, targets=['NAA'])])
    panel = explore_decoder(bare, bare.layout.join({'amplitudes': 1.}))
    panel.sliders['own_shift NAA'].value = 2.
    assert np.array_equal(drawn(panel, 'fit'), decoded(panel)) and 'baseline' not in panel.lines
    with pytest.raises(InputError): explore_decoder(bare, torch.zeros(3))


def test_nothing_to_explore(result):
    from deepmrs.widgets import one_result
    with pytest.raises(InputError, match='nothing to explore'): explore(one_result(result, 0))


@pytest.fixture(scope='module')
def tested():
    "Prepared data, which have been shifted and phased, with their truth"
    basis = simulate_basis(te1=.011, te2=.019)
    dry = adapt('brain-3t', remove_water=False)  # whose removal would take some of the truth's baseline for its tail
    decoder, _, _ = make_decoder(basis, preset=dry)
    spectra, truth = Simulator(decoder, brain_priors(decoder), noise_sd=4.).spectra(4, seed=9)
    return quantify(spectra, basis, preset=dry), truth, spectra


def test_names_are_not_over_each_other(result):
    e = explore(result)
    e.sliders['PCr'].value = e.sliders['Cr'].value = 6.
    e.figure.draw_without_rendering()
    boxes = {n: t.get_window_extent() for n, t in e.picture.labels.items() if t.get_visible()}
    assert {'Cr', 'PCr'} <= set(boxes)
    top = e.picture.low.get_window_extent()
    for n, a in boxes.items():
        assert a.y1 < top.y1 + 2 and a.x0 > top.x0 - 3 and a.x1 < top.x1 + 3, n
        for m, b in boxes.items():
            width, height = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
            assert n == m or width < 3 or height < 3, (n, m)


def test_truth_is_drawn_where_the_data_are(tested):
    result, truth, spectra = tested
    b = browse(result, truth)
    noise = 4*spectra.acquisition.points**.5
    for i in range(4):
        b.picker.value = i
        assert np.std(drawn(b, 'data') - drawn(b, 'truth')) < 1.5*noise
        assert np.array_equal(drawn(b, 'truth'), (b.truth*b.frame).real.numpy()[b.picture.inside])


def test_browse_sorts_by_the_worst(tested):
    result, truth, _ = tested
    b = browse(result, truth)
    assert [i for _, i in b.picker.options] == [0, 1, 2, 3] and 'Glx' in b.names and 'MM09' not in b.names
    for name in ('Gln', 'tNAA'):
        b.sorter.value = name
        frame = compare(result, truth).query('metabolite == @name')
        assert [i for _, i in b.picker.options] == list(np.argsort(-frame.error_in_sd.abs().values)) and b.picker.value == b.picker.options[0][1]
        assert b.current.spectra.names == [result.spectra.names[b.picker.value]]
        assert f'{frame.error_in_sd.values[b.picker.value]:+.1f}' in b.table.value and f'{frame.truth.values[b.picker.value]:.3g}' in b.table.value
    b.sorter.value = 'largest error'
    assert b.picker.value == int(b.errors.abs().amax(1).argmax())
    b.sliders['NAA'].value = 1.
    b.refit_button.click()
    assert 'error/sd' in b.table.value and 'steps' in b.message.value


def test_browse_quantifies_spectra_and_refuses_another_truth(tested):
    result, truth, spectra = tested
    b = browse(spectra[:1], truth[:1], basis=simulate_basis(te1=.011, te2=.019), preset=adapt('brain-3t', remove_water=False))
    assert torch.allclose(b.result.fit.params, result.fit.params[:1], rtol=.05, atol=.5)
    with pytest.raises(InputError, match='truth must be 4 × '): browse(result, truth[:2])
    with pytest.raises(InputError, match='truth must be 4 × '): browse(result, truth[:, :5])


SMALL = dict(points=256, encoder_options={'channels': [8, 8, 16, 16, 24, 24]}, noise_sd=4.)
RUN = '''
import sys
from deepmrs.model import make_decoder
from deepmrs.spins import simulate_basis
from deepmrs.training import train
b = simulate_basis(te1=.011, te2=.019).select(['NAA', 'Cr', 'GPC'])
train(b, acquisition=b.acquisition.replace(points=512), out=sys.argv[1], points=256, encoder_options={'channels': [8, 8, 16, 16, 24, 24]}, noise_sd=4.,
      spectra_per_epoch=2560, max_epochs=int(sys.argv[2]), validation=128, log_every=5, progress=False, patience=None)
'''


def until(true, seconds=60.):
    "Wait until it is true"
    tic = time.perf_counter()
    while not true():
        assert time.perf_counter() - tic < seconds, 'waited in vain'
        time.sleep(.05)


def test_watch_another_process(tmp_path):
    from deepmrs.training import build_model
    basis = simulate_basis(te1=.011, te2=.019).select(['NAA', 'Cr', 'GPC'])
    decoder, used, _ = make_decoder(basis, basis.acquisition.replace(points=512), preset='none')
    out = tmp_path/'run'
    late, live = watch(out, every=.2), watch(out, build_model(decoder, **SMALL)[0], every=.2, count=2)
    assert 'no log' in late.message.value and late.live.value and late.thread.is_alive() and late.browser is None
    process = subprocess.Popen([sys.executable, '-c', RUN, str(out), '12'])
    try:
        until(lambda: live.browser is not None and len(live.rates) > 1)
        if process.poll() is None: assert late.browser is None and 'follow at its end' in late.message.value
        first = live.browser.params.clone()
        assert drawn(live.browser, 'truth').std() > 0
    finally: assert process.wait(60) == 0
    for w in (late, live):
        w.thread.join(20)
        assert not w.thread.is_alive() and not w.live.value and w.message.value.endswith('ended')
        losses = w.log.dropna(subset=['val_loss'])
        assert len(losses) == 12 and np.array_equal(w.curves.lines['val_loss'].get_ydata(), losses.val_loss) and set(w.rates.values()) <= {1e-3, 1e-4, 1e-5, 1e-3*.1, 1e-3*.01}
    model = load_model(out)
    with torch.no_grad(): assert torch.allclose(late.browser.result.fit.params.float(), model(late.tests[0].fids), atol=1e-4)
    assert torch.allclose(live.browser.result.fit.params.float(), model(live.tests[0].fids), atol=1e-4) and not live.browser.params.equal(first)
    assert watch(out).thread is None  # it has ended: nothing to wait for


def test_watch_stops_and_says_what_is_wrong(tmp_path, result):
    w = watch(tmp_path, every=.05)
    assert w.thread.is_alive()
    w.live.value = False
    assert not w.thread.is_alive()
    w.live.value = True
    assert w.thread.is_alive()
    w.box.close()
    w.thread.join(5)
    assert not w.thread.is_alive()  # closed: nobody looks
    folder = tmp_path/'logs/version_0'
    folder.mkdir(parents=True)
    (folder/'metrics.csv').write_text('')
    w = watch(tmp_path, every=60.)
    assert 'being written' in w.message.value
    (folder/'metrics.csv').write_text('epoch,step,train_loss,val_loss\n0,9,5.,\n0,9,,4.\n')
    (tmp_path/'checkpoints').mkdir()
    (tmp_path/'checkpoints/last.ckpt').write_bytes(b'half a checkpoint')
    w.refresh_button.click()
    assert 'validation loss 4' in w.message.value and list(w.curves.lines['train_loss'].get_ydata()) == [5.] and not w.rates
    tic = time.perf_counter()
    w.stop()
    assert time.perf_counter() - tic < 5 and not w.thread.is_alive()
    with pytest.raises(InputError, match='keeps no logs'): watch(RunConfig(basis='x.basis'))


def test_without_ipywidgets():
    code = """
import sys; sys.modules['ipywidgets'] = None
from deepmrs.core import InputError
from deepmrs.widgets import _widgets
try: _widgets()
except InputError as e: print(e)"""
    assert 'pip install "deepmrs[notebooks]"' in subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout
