"What asks a run to stop, and who else may not disturb it: signals, readers that go away, a second process, time"
import os, signal, subprocess, sys
import pytest, torch
from types import SimpleNamespace
from fastai.vision.all import *
from resnet_course.kit import checkpoint, runs
from resnet_course.kit.runs import measured_fit
from resnet_course.kit.stopping import Stopped
from conftest import CtrlC, one_line, tiny_learner
from test_runs import ckpt, file, outcome, run, whole

def weights(whole): return {k:v for k,v in whole.items() if k!='rec'}

def send(signum, event='before_batch', epoch=1, batch=6): return CtrlC(event, epoch, batch, signum=signum)

@pytest.mark.faults('a run gets a signal')
@pytest.mark.parametrize('signum, code', [(signal.SIGINT,130), (signal.SIGTERM,143), (signal.SIGHUP,129)])
@pytest.mark.parametrize('where', [('before_batch',0,0), ('before_batch',1,6), ('before_validate',1,None), ('after_epoch',0,None)], ids=str)
def test_signals_lose_nothing(drawn, whole, signum, code, where):
    handlers = [signal.getsignal(o) for o in (signal.SIGINT,signal.SIGTERM,signal.SIGHUP,signal.SIGUSR1)]
    with pytest.raises(Stopped) as e: run(drawn, send(signum, *where))
    assert e.value.code==code and isinstance(e.value, KeyboardInterrupt)
    assert handlers==[signal.getsignal(o) for o in (signal.SIGINT,signal.SIGTERM,signal.SIGHUP,signal.SIGUSR1)]
    assert outcome(*run(drawn, resume=True))==weights(whole)

@pytest.mark.parametrize('ignored', [signal.SIGHUP, signal.SIGINT])
def test_what_is_ignored_stays_ignored(drawn, whole, ignored):
    "As `nohup` and `&` in a script have it"
    was = signal.signal(ignored, signal.SIG_IGN)
    try: assert outcome(*run(drawn, send(ignored)))==weights(whole)
    finally: signal.signal(ignored, was)

@pytest.mark.faults('a run gets a signal')
def test_a_signal_between_two_looks_is_not_lost(drawn, whole):
    "It comes after the run has looked for one, and before it goes on"
    looked,real = [],checkpoint.most
    def late(*numbers):
        looked.append(1)
        res = real(*numbers)
        if len(looked)==5: signal.raise_signal(signal.SIGINT)
        return res
    was = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.MonkeyPatch.context() as m, pytest.raises(Stopped):
            m.setattr(checkpoint, 'most', late)
            run(drawn)
    finally: signal.signal(signal.SIGINT, was)
    assert len(looked)==6   # seen at the next look, and saved there
    assert outcome(*run(drawn, resume=True))==weights(whole)

def test_saved_on_request(drawn, whole):
    "SIGUSR1 saves, and the run goes on"
    seen = []
    class Look(Callback):
        order = 70
        def after_batch(self):
            if ckpt.exists(): seen.append(tuple(torch.load(ckpt, weights_only=True)[o] for o in ('epoch','iter')))
    assert outcome(*run(drawn, send(signal.SIGUSR1), Look()))==weights(whole)
    assert (1,3) in seen

@pytest.mark.parametrize('minutes, expected', [(0,12), (5,3), (math.inf,3)])
def test_a_checkpoint_every_few_minutes(drawn, whole, monkeypatch, minutes, expected):
    times,save = [],torch.save
    monkeypatch.setattr(torch, 'save', lambda *args: (times.append(1), save(*args)))
    learn,rec = run(drawn, minutes=minutes)
    assert outcome(learn, rec)==weights(whole) and len(times)>=expected
    if minutes: assert len(times)==expected

def test_killed_within_an_epoch(drawn, whole):
    "What was saved last counts, in the middle of an epoch too"
    class Dies(Callback):
        order = 99
        def after_batch(self):
            if self.training and self.train_iter==7: raise MemoryError('killed')   # nothing is saved on the way out
    with pytest.raises(MemoryError): run(drawn, Dies(), minutes=0)
    assert torch.load(ckpt, weights_only=True)['iter']>0
    assert outcome(*run(drawn, resume=True))==weights(whole)

# --- the checkpoint before the last -----------------------------------------------------------------------------
def flipped(data, at): return data[:at] + bytes([data[at]^1]) + data[at+1:]

@pytest.mark.faults('a checkpoint is spoiled')
@pytest.mark.parametrize('spoil', [lambda o: o[:0], lambda o: o[:len(o)//2], lambda o: flipped(o, len(o)//2), lambda o: flipped(o, len(o)//3),
                                   lambda o: b'no checkpoint'], ids=['empty','half','a bit','another bit','text'])
def test_a_spoiled_checkpoint_has_one_before_it(drawn, whole, spoil, capsys):
    with pytest.raises(KeyboardInterrupt): run(drawn, CtrlC('before_batch',1,6))
    old = checkpoint.one_before(ckpt)
    ckpt.write_bytes(spoil(ckpt.read_bytes()))
    assert outcome(*run(drawn, resume=True))==weights(whole) and not old.exists()
    assert 'spoiled' in capsys.readouterr().out

@pytest.mark.faults('a checkpoint is spoiled')
@pytest.mark.parametrize('at', [.1, .3, .5, .7, .9])
def test_a_flipped_bit_changes_nothing(drawn, whole, at):
    with pytest.raises(KeyboardInterrupt): run(drawn, CtrlC('before_batch',0,2))
    assert not checkpoint.one_before(ckpt).exists()
    data = ckpt.read_bytes()
    ckpt.write_bytes(flipped(data, int(at*len(data))))
    try: got = outcome(*run(drawn, resume=True))
    except Exception as e: assert one_line(SimpleNamespace(value=e), ckpt, 'not a complete checkpoint')
    else: assert got==weights(whole)   # it was between the parts of the file

def test_only_the_last_one_is_missing(drawn, whole):
    "As after a kill between two renames"
    with pytest.raises(KeyboardInterrupt): run(drawn, CtrlC('before_batch',1,6))
    ckpt.unlink()
    assert outcome(*run(drawn, resume=True))==weights(whole)

# --- who else is there ------------------------------------------------------------------------------------------
def fit(drawn, **kwargs): return measured_fit(tiny_learner(drawn), 1, 1e-2, file, **dict(dict(model='fcn', recipe='small', size=32, seed=42)|kwargs))

@pytest.mark.parametrize('state', ['finished','stopped'])
@pytest.mark.parametrize('other', [{}, dict(seed=1), dict(size=48), dict(model='another')], ids=str)
def test_no_run_is_destroyed_unasked(drawn, state, other):
    if state=='finished': run(drawn, epochs=1)
    else:
        with pytest.raises(KeyboardInterrupt): run(drawn, CtrlC('before_batch',1,6))
    there = {o:o.read_bytes() for o in file.parent.ls()}
    with pytest.raises(Exception) as e: fit(drawn, **other)
    assert one_line(e, file, state, 'resume=True', '--resume', 'overwrite=True', '--overwrite')
    assert {o:o.read_bytes() for o in file.parent.ls()}==there
    assert fit(drawn, overwrite=True, **other)['complete']

def test_keep_and_begin_anew_exclude_each_other(drawn):
    with pytest.raises(Exception) as e: fit(drawn, resume=True, overwrite=True)
    assert one_line(e, 'resume', 'overwrite')

@pytest.mark.faults('a second process in one folder')
def test_a_second_process_is_refused(drawn):
    code = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from resnet_course.kit.runs import _alone
with _alone(Path({str(file)!r})): print('mine', flush=True); time.sleep(60)"""
    file.parent.mkdir()
    p = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True)
    assert p.stdout.readline()=='mine\n'
    with pytest.raises(Exception) as e: fit(drawn)
    assert one_line(e, file, 'another process')
    p.kill()
    p.wait()
    assert fit(drawn)['complete']   # its lock died with it
    assert not [o for o in file.parent.ls() if o.name.startswith('.')]

def test_what_killed_writers_left_is_swept(drawn):
    for o in (file,ckpt): write(o.with_name(f'.{o.name}-0123456789abcdef.tmp'))
    mine = [write(file.parent/o) for o in ('.fcn-small-s42.json-notes', '.fcn-small-s4.json-0123456789abcdef.tmp', 'fcn-small-s42.json-0123456789abcdef.tmp')]
    fit(drawn)
    assert sorted(o for o in file.parent.ls() if o not in (file,ckpt))==sorted(mine)
def write(f):
    f.parent.mkdir(exist_ok=True)
    f.write_text('x')
    return f

# --- parts of a run ---------------------------------------------------------------------------------------------
def test_parts(drawn, monkeypatch, capsys):
    "A run that goes on elsewhere says so, and its record has both"
    with pytest.raises(KeyboardInterrupt): run(drawn, CtrlC('before_batch',1,6))
    monkeypatch.setattr(runs, 'versions', lambda: dict(python='3.99', torch='9.0'))
    monkeypatch.setattr(runs, 'hardware', lambda d=None: dict(device='cpu', name='another', cores=64, threads=64))
    _,rec = run(drawn, resume=True)
    here,there = rec['parts']
    assert (here['epoch'],here['batch'],there['epoch'],there['batch'])==(0,0,1,3)
    assert here['hardware']!=there['hardware']==rec['hardware'] and there['versions']==rec['versions']
    said = [o for o in capsys.readouterr().out.splitlines() if 'goes on with' in o]
    assert len(said)==1 and 'torch 9.0 (until now ' in said[0] and 'threads 64' in said[0]

def test_a_run_of_one_part_says_nothing(whole): assert 'parts' not in whole['rec']
def test_the_same_circumstances_need_no_word(drawn, capsys):
    with pytest.raises(KeyboardInterrupt): run(drawn, CtrlC('before_batch',1,6))
    assert len(run(drawn, resume=True)[1]['parts'])==2 and 'goes on with' not in capsys.readouterr().out

# --- whoever listens --------------------------------------------------------------------------------------------
class Deaf:
    def __init__(self, after, error): self.n,self.error = after,error
    def write(self, text):
        self.n -= 1
        if self.n<0: raise self.error
        return len(text)
    def flush(self): pass

@pytest.mark.faults('nobody takes the output')
@pytest.mark.parametrize('error', [BrokenPipeError(), OSError(28, 'No space left on device'), OSError(5, 'Input/output error'),
                                   ValueError('I/O operation on closed file')], ids=repr)
@pytest.mark.parametrize('after', [0, 3, 7])
@pytest.mark.parametrize('stream', ['stdout','stderr'])
def test_nobody_listens(drawn, whole, monkeypatch, error, after, stream):
    "The run stops as when its terminal is closed, and loses nothing"
    def talk(*args): print('a line', file=getattr(sys, stream))
    with monkeypatch.context() as m:
        m.setattr(sys, stream, Deaf(after, error))
        with pytest.raises(Stopped) as e: run(drawn, Callback(after_batch=talk))
    assert e.value.code==129
    assert outcome(*run(drawn, resume=True))==weights(whole)

# --- the command ------------------------------------------------------------------------------------------------
train = [sys.executable, '-m', 'resnet_course', 'train', '--recipe', 'tiny', '--precision', 'fp32', '--epochs', '40', '--out', 'out']

def started(drawn, **kwargs):
    "A run in a process of its own, in its second epoch"
    p = subprocess.Popen([*train, '--data', str(drawn)], stderr=subprocess.PIPE, text=True, env=dict(os.environ, OMP_NUM_THREADS='1'), **kwargs)
    record = Path('out/resblock-tiny-s42.json')
    while p.poll() is None and not record.exists(): time.sleep(.05)
    return p

@pytest.mark.faults('a run gets a signal')
@pytest.mark.parametrize('signum, code', [(signal.SIGINT,130), (signal.SIGTERM,143), (signal.SIGHUP,129)])
def test_the_command_stopped_by_a_signal(drawn, signum, code):
    p = started(drawn, stdout=subprocess.DEVNULL)
    p.send_signal(signum)
    said = p.communicate(timeout=60)[1]
    assert p.returncode==code and '--resume' in said.splitlines()[-1] and 'Traceback' not in said
    assert torch.load('out/resblock-tiny-s42.pt', weights_only=True)['epoch']>=1

@pytest.mark.faults('nobody takes the output')
@pytest.mark.parametrize('kind', ['pipe','full'])
def test_the_command_when_nobody_listens(drawn, kind):
    if kind=='full' and not Path('/dev/full').exists(): pytest.skip('there is no /dev/full here')
    out = subprocess.PIPE if kind=='pipe' else open('/dev/full', 'w')
    p = started(drawn, stdout=out)
    if kind=='pipe': p.stdout.close()   # as `head -1` does
    said = p.stderr.read()
    assert p.wait(timeout=60)==129 and '--resume' in said and 'Traceback' not in said and 'Exception ignored' not in said
    if kind=='pipe': assert torch.load('out/resblock-tiny-s42.pt', weights_only=True)['history']   # a full one ends it before it begins

def test_the_command_does_not_overwrite(drawn):
    again = [*train, '--data', str(drawn), '--epochs', '1']
    def run_it(*more): return subprocess.run([*again, *more], capture_output=True, text=True)
    first = run_it()
    kept = Path('out/resblock-tiny-s42.json').read_bytes()
    refused = run_it()
    assert first.returncode==0 and refused.returncode==1 and Path('out/resblock-tiny-s42.json').read_bytes()==kept
    assert refused.stderr.count('\n')==1 and '--resume' in refused.stderr and '--overwrite' in refused.stderr
    assert run_it('--overwrite').returncode==0
