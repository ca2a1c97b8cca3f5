"The widgets, by setting values: the drawn lines are what the decoder says."
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from deepmrs.core import InputError, fid_to_spectrum
from deepmrs.decoder import Decoder, Lorentzian, Phase, Shift
from deepmrs.model import make_decoder
from deepmrs.quantify import quantify
from deepmrs.simulate import Simulator, brain_priors
from deepmrs.spins import simulate_basis

pytest.importorskip('ipywidgets', reason='needs the extra notebooks')
from deepmrs.widgets import explore, explore_decoder  # noqa: E402


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


def test_display_and_speed(result):
    e = explore(result)
    bundle = e._repr_mimebundle_()
    assert 'application/vnd.jupyter.widget-view+json' in bundle and bundle['image/png'] and bytes(e.image.value[:4]) == b'\x89PNG'
    took = []
    for v in (1., 2., 3., 4.): tic = time.perf_counter(); e.sliders['Glu'].value = v; took.append(time.perf_counter() - tic)
    assert min(took) < .4  # 0.06 s on a free core


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


def test_without_ipywidgets():
    code = """
import sys; sys.modules['ipywidgets'] = None
from deepmrs.core import InputError
from deepmrs.widgets import _widgets
try: _widgets()
except InputError as e: print(e)"""
    assert 'pip install "deepmrs[notebooks]"' in subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout
