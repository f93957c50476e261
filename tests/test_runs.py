"A run's record and checkpoint: stopped anywhere and resumed, a run ends as if it had not been stopped"
import errno, itertools, shutil, signal, subprocess
import pytest, resnet_course, torch
from fastai.vision.all import *
from resnet_course.kit import checkpoint, runs
from resnet_course.kit.files import load_json, save_json, write_whole
from resnet_course.kit.identity import check_run, in_json
from resnet_course.kit.photos import fingerprint
from fastai.callback.tracker import EarlyStoppingCallback, ReduceLROnPlateau, SaveModelCallback
from resnet_course.kit.runs import commit, fit_seconds, measured_fit, record_file, RunRecord, versions
from resnet_course.kit.results import results, summary
from resnet_course.data import get_data
from resnet_course.training import fit_or_show, get_learner
from conftest import CtrlC, one_line, photo_set, tiny_learner

file,ckpt,epochs = Path('out/fcn-small-s42.json'),Path('out/fcn-small-s42.pt'),3   # of 4 batches

def run(path, *cbs, resume=False, epochs=epochs, seed=42, precision='fp32', **about):
    learn = tiny_learner(path, precision, seed, cbs=cbs)
    rec = measured_fit(learn, epochs, 1e-2, file, resume,
        **dict(overwrite=not resume, model='fcn', recipe='small', size=32, seed=seed, command='pytest')|about)
    return learn,rec

def outcome(learn, rec):
    "All that must not depend on whether the run was stopped"
    r = learn.recorder
    return dict(history=[{k:v for k,v in o.items() if k!='seconds'} for o in rec['history']],
        lrs=list(map(float,r.lrs)), losses=list(map(float,r.losses)), iters=list(r.iters),
        values=list(map(list,r.values)),
        weights={k:v.tolist() for k,v in learn.model.state_dict().items()})

@pytest.fixture(scope='module')
def whole(drawn, tmp_path_factory):
    "The outcome of the run that is not stopped"
    with pytest.MonkeyPatch.context() as m:
        m.chdir(tmp_path_factory.mktemp('whole'))
        torch.set_num_threads(1)
        learn,rec = run(drawn)
        return dict(outcome(learn, rec), rec=rec)

def test_the_record(whole, drawn):
    rec = whole['rec']
    assert set(rec)>={'name','command','model','recipe','data','size','epochs','seed','history','accuracy','seconds',
        'precision','hardware','versions','commit'}
    assert rec['data']==dict(name='sample', n_train=64, n_val=24, fingerprint=fingerprint(drawn))
    expected = dict(name='fcn-small-s42', model='fcn', size=32, epochs=3, seed=42, precision='fp32', complete=True)
    assert rec|expected==rec
    assert [set(o) for o in rec['history']]==[{'epoch','train_loss','train_accuracy','valid_loss','accuracy','seconds'}]*3
    assert [o['epoch'] for o in rec['history']]==[0,1,2]
    assert rec['accuracy']==rec['history'][-1]['accuracy'] and 0<=rec['accuracy']<=1
    assert set(rec['hardware'])>={'device','name','units','cores','threads'}
    assert set(rec['versions'])>={'python','torch','fastai','resnet_course'}

def test_the_training_accuracy(drawn):
    "That of the batches as they were trained on"
    class Hits(Callback):
        right = []
        def after_pred(self):
            if self.training: self.right += (self.pred.argmax(1)==self.y).tolist()
    _,rec = run(drawn, hits:=Hits(), epochs=2)
    assert [o['train_accuracy'] for o in rec['history']]==[np.mean(hits.right[:64]), np.mean(hits.right[64:])]

@pytest.mark.filterwarnings('error:You are shadowing')
def test_a_net_may_have_the_names_of_the_record(drawn):
    learn = tiny_learner(drawn)
    for o in ('hits','seen','last','parts','made','epochs','history','start'): setattr(learn.model, o, 5)
    assert measured_fit(learn, 1, 1e-3, Path('a.json'), model='a', recipe='b', size=32, seed=42)['complete'] and learn.seen==5

@pytest.mark.parametrize('stop, place', [ # `place`: the epoch to go on with, and how many of its batches are trained
    (CtrlC('before_batch',0,0), (0,1)), (CtrlC('before_batch',1,6), (1,3)), (CtrlC('after_step',1,5), (1,2)),
    (CtrlC('before_batch',1,7), (1,4)),
    (CtrlC('before_validate',1), (1,4)), (CtrlC('after_epoch',0), (1,1)), (CtrlC('before_epoch',1), (1,1)),
    (CtrlC('before_validate',2), (2,4)),
    (CtrlC('before_batch',1,6,times=2), (1,0))],
    ids=['first_batch','middle','after_the_step','last_batch','validation','between','before_epoch',
    'last_validation','pressed_twice'])
def test_stopped_and_resumed(stop, place, drawn, whole):
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt): run(drawn, stop)
    assert signal.getsignal(signal.SIGINT)==handler
    saved = torch.load(ckpt, weights_only=True)
    assert (saved['epoch'],saved['iter'])==place
    if file.exists(): assert not json.loads(file.read_text())['complete']
    learn,rec = run(drawn, resume=True)
    assert rec['complete'] and outcome(learn, rec)=={k:v for k,v in whole.items() if k!='rec'}

def test_stopped_three_times(drawn, whole):
    for i in (1,2,6):
        with pytest.raises(KeyboardInterrupt): run(drawn, CtrlC('before_batch', i//4, i), resume=True)
    learn,rec = run(drawn, resume=True)
    assert outcome(learn, rec)=={k:v for k,v in whole.items() if k!='rec'}

def test_stopped_with_workers(drawn, monkeypatch):
    monkeypatch.setattr('resnet_course.data.n_workers', lambda *_: 2)
    expected = outcome(*run(drawn, epochs=2))
    with pytest.raises(KeyboardInterrupt): run(drawn, CtrlC('before_batch',0,2), epochs=2)
    assert outcome(*run(drawn, epochs=2, resume=True))==expected

def test_ctrl_c_after_the_last_batch_is_not_lost(drawn):
    with pytest.raises(KeyboardInterrupt): run(drawn, CtrlC('after_epoch',2))
    assert json.loads(file.read_text())['complete']

class Trains(Callback):
    def __init__(self, seen): self.seen = seen
    def before_batch(self): self.seen.append(self.train_iter)

class Numbers(Callback):
    def __init__(self, seen): self.seen = seen
    def before_batch(self):
        if self.training: self.seen.append((self.epoch, self.iter, self.train_iter))

@pytest.mark.parametrize('stop', [CtrlC('before_batch',1,6), CtrlC('after_epoch',0), CtrlC('before_epoch',1,times=2)],
                         ids=['middle','between','before_epoch'])
def test_batches_keep_their_numbers(drawn, stop):
    "For callbacks that go by them, and for the record of a loss that is no number"
    whole,parts = [],[]
    run(drawn, Numbers(whole), epochs=2)
    with pytest.raises(KeyboardInterrupt): run(drawn, Numbers(parts), stop, epochs=2)
    run(drawn, Numbers(parts), epochs=2, resume=True)
    assert parts==whole and whole[-1]==(1,3,7)

@pytest.mark.parametrize('stop', [CtrlC('before_batch',0,1), CtrlC('before_batch',1,4), CtrlC('before_validate',0)],
                         ids=['first','second','validation'])
def test_an_epoch_that_a_callback_ends(drawn, stop):
    "Its last batch counts, and none is trained after it; the record tells the loss of validation from that of training"
    short = ShortEpochCallback(.5, short_valid=False)
    learn,rec = run(drawn, short, epochs=2)
    assert len(learn.recorder.losses)==4 and rec['history'][-1].keys()>={'valid_loss','accuracy'} and 'train_loss' not in rec['history'][-1]
    with pytest.raises(KeyboardInterrupt): run(drawn, short, stop, epochs=2)
    assert outcome(*run(drawn, short, epochs=2, resume=True))==outcome(learn, rec)

class LeavesOut(Callback):
    "Leaves out the training of an epoch"
    def __init__(self, epoch): self.at = epoch
    def before_train(self):
        if self.epoch==self.at: raise CancelTrainException

@pytest.mark.parametrize('out', [0,1])
def test_an_epoch_without_training(drawn, out):
    "Also where a run goes on with it"
    expected = outcome(*run(drawn, LeavesOut(out), epochs=3))
    with pytest.raises(KeyboardInterrupt): run(drawn, LeavesOut(out), CtrlC('before_epoch',1,times=2), epochs=3)
    assert outcome(*run(drawn, LeavesOut(out), epochs=3, resume=True))==expected

def test_resuming_a_finished_run_trains_nothing(drawn, whole):
    run(drawn)
    file.unlink()   # the record is made again from the checkpoint
    trained = []
    learn,rec = run(drawn, Trains(trained), resume=True)
    assert not trained and rec['complete'] and outcome(learn, rec)=={k:v for k,v in whole.items() if k!='rec'}

def test_the_time_of_a_stopped_epoch_counts(drawn, monkeypatch):
    "Each of the four batches takes a second, on a clock of our own; the run is stopped after some, and resumed"
    now = [0.]
    monkeypatch.setattr(runs.time, 'perf_counter', lambda: now[0])
    class Slow(Callback):
        def before_batch(self): now[0] += self.training
    with pytest.raises(KeyboardInterrupt): run(drawn, Slow(), CtrlC('before_batch',0,2), epochs=1)
    assert run(drawn, Slow(), epochs=1, resume=True)[1]['seconds']==4

class HalfScale(Callback):
    "Stands in for fastai's `MixedPrecision`, whose scaler does nothing without a GPU; halves its scale at each batch"
    order = 10
    def __init__(self): self.seen = []
    def before_fit(self):
        self.learn.scaler = torch.amp.GradScaler('cpu', init_scale=2.**20)
        self.scaler.scale(torch.ones(1))   # as the first loss does
    def before_batch(self):
        if not self.training: return
        self.seen.append(self.scaler.get_scale())
        self.scaler.update(self.seen[-1]/2)
    def after_fit(self): self.learn.scaler = None

def test_the_scale_of_fp16_goes_on(drawn):
    run(drawn, whole:=HalfScale())
    assert whole.seen==[2.**(20-i) for i in range(epochs*4)]
    with pytest.raises(KeyboardInterrupt): run(drawn, begun:=HalfScale(), CtrlC('before_batch',1,6))
    run(drawn, rest:=HalfScale(), resume=True)
    assert begun.seen+rest.seen==whole.seen
    run(drawn, HalfScale(), resume=True)   # of a finished run nothing is left to scale

def test_without_resume_a_run_begins_anew(drawn, whole):
    with pytest.raises(KeyboardInterrupt): run(drawn, CtrlC('before_batch',1,6))
    assert outcome(*run(drawn))=={k:v for k,v in whole.items() if k!='rec'}

@pytest.mark.parametrize('size', [0, 100, 5000])
def test_a_truncated_checkpoint(size, drawn):
    with pytest.raises(KeyboardInterrupt): run(drawn, CtrlC('before_batch',0,1))
    ckpt.write_bytes(ckpt.read_bytes()[:size])
    with pytest.raises(Exception) as e: run(drawn, resume=True)
    assert one_line(e, ckpt, 'delete it', '--resume')

def test_a_file_that_is_no_checkpoint(drawn):
    ckpt.parent.mkdir(parents=True)
    for o in ({}, [1], dict(about=3)):
        torch.save(o, ckpt)
        with pytest.raises(Exception) as e: run(drawn, resume=True)
        assert one_line(e, ckpt, 'not a complete checkpoint')

@pytest.mark.parametrize('change', [dict(epochs=4), dict(seed=7), dict(model='resblock'), dict(settings=dict(bs=8)),
    dict(precision='bf16')])
def test_the_checkpoint_of_another_run(change, drawn):
    with pytest.raises(KeyboardInterrupt): run(drawn, CtrlC('before_batch',0,1))
    with pytest.raises(Exception) as e: run(drawn, resume=True, **change)
    assert one_line(e, ckpt, f'(different {first(change)})', '--resume')

def test_the_checkpoint_of_other_photos(drawn):
    with pytest.raises(KeyboardInterrupt): run(drawn, CtrlC('before_batch',0,1))
    with pytest.raises(Exception) as e: run(photo_set(Path('mine'), n=10), resume=True)
    assert one_line(e, ckpt, 'data')

def test_the_same_run_in_other_words(drawn, whole):
    "Another command, another name of the folder: the same photos, and so the same run"
    with pytest.raises(KeyboardInterrupt): run(drawn, CtrlC('before_batch',1,6))
    shutil.copytree(drawn, 'moved')
    (Path('moved')/'sample.json').unlink()   # else it is called the sample still
    got = outcome(*run(Path('moved'), resume=True, command='in other words'))
    assert got=={k:v for k,v in whole.items() if k!='rec'}

def test_the_checkpoint_lies_beside_the_record(drawn, monkeypatch):
    "And is found from another place"
    def fit(resume):
        return measured_fit(tiny_learner(drawn), 2, 1e-2, out, resume, model='fcn', recipe='small', size=32, seed=42)
    out = Path('a/out/fcn-small-s42.json').absolute()
    first = fit(False)
    Path('elsewhere').mkdir()
    monkeypatch.chdir('elsewhere')
    assert out.with_suffix('.pt').exists() and fit(True)==first and not Path().ls()

# --- files ------------------------------------------------------------------------------------------------------
def test_a_failed_write_leaves_the_old_file(tmp_path):
    f = tmp_path/'new folder'/'a.json'
    save_json(f, dict(a='ä'))
    assert json.loads(f.read_text(encoding='utf-8'))==dict(a='ä')
    old = f.read_bytes()
    with pytest.raises(TypeError): save_json(f, dict(a=object()))
    for error in (OSError, KeyboardInterrupt):
        with pytest.raises(error):
            with write_whole(f) as o: o.write('half'); raise error
    assert f.read_bytes()==old and f.parent.ls()==[f]

def test_a_file_that_someone_has_open(tmp_path, monkeypatch):
    "On Windows a file cannot be replaced while another program reads it; most are soon done"
    f,tries,replace = tmp_path/'a.json',[],os.replace
    def busy(*args):
        tries.append(1)
        if len(tries)<=patience: raise PermissionError('in use')
        replace(*args)
    monkeypatch.setattr(os, 'replace', busy)
    monkeypatch.setattr(time, 'sleep', noop)
    patience = 2
    save_json(f, dict(a=1))
    assert load_json(f)==dict(a=1) and len(tries)==3
    patience = 99
    with pytest.raises(PermissionError): save_json(f, dict(a=2))
    assert load_json(f)==dict(a=1) and tmp_path.ls()==[f]

@pytest.mark.parametrize('number', [math.nan, math.inf, -math.inf])
def test_what_json_has_not_is_not_written(tmp_path, number):
    with pytest.raises(ValueError): save_json(tmp_path/'a.json', dict(a=[number]))
    assert not tmp_path.ls()

@pytest.mark.parametrize('what', ['checkpoint','checkpoint, hidden','record'])
@pytest.mark.parametrize('full', [{0}, {0,1}, {1,2}])
def test_a_disk_that_is_full_for_a_while(drawn, whole, monkeypatch, capsys, what, full):
    "Is said once, the run goes on, and what can be written later is written; torch hides the reason behind its own"
    times,(of,name) = [],(runs,'save_json') if what=='record' else (torch,'save')
    save = getattr(of, name)
    def sometimes(*args):
        times.append(1)
        if len(times)-1 not in full: return save(*args)
        try: raise OSError(errno.ENOSPC, 'No space left on device')
        except OSError:
            if 'hidden' in what: raise RuntimeError('unexpected pos')
            raise
    monkeypatch.setattr(of, name, sometimes)
    assert outcome(*run(drawn))=={k:v for k,v in whole.items() if k!='rec'}
    said = [o for o in capsys.readouterr().out.splitlines() if 'No space' in o]
    assert len(said)==1 and str(file if what=='record' else ckpt) in said[0] and 'goes on' in said[0]
    assert json.loads(file.read_text())['complete'] and (what=='record' or 2 in full or torch.load(ckpt, weights_only=True)['epoch']==3)
    assert not [o for o in file.parent.ls() if o.name.startswith('.')]

def test_a_full_disk_is_not_tried_after_each_batch(drawn, monkeypatch):
    "But after as many minutes as one that has room"
    ticks,tries = itertools.count(step=100),[]
    clock = SimpleNamespace(**{k:getattr(time, k) for k in ('time','perf_counter')}, monotonic=lambda: next(ticks))   # each look takes 100 s
    monkeypatch.setattr(checkpoint, 'time', clock)
    save = torch.save
    def note(*args):
        tries.append(1)
        return save(*args)
    def full(*args):
        tries.append(1)
        raise OSError(errno.ENOSPC, 'No space left on device')
    def count(save):
        tries.clear()
        monkeypatch.setattr(torch, 'save', save)
        run(drawn)
        return len(tries)
    assert 3<count(note)<12
    assert count(full)==count(note)

@pytest.mark.parametrize('pred, y, expected', [((6,10), torch.arange(6), 6), ((6,10,4,4), torch.zeros(6,4,4).long(), 96),
    ((10,10), torch.ones(10,10), 0), ((6,10), torch.ones(6,10), 0), ((6,), torch.ones(6), 0), ((6,1), torch.ones(6,1), 0),
    ((6,10), torch.zeros(6,10).long(), 0), ((6,1), torch.zeros(6,1).long(), 0)])
def test_only_classes_have_a_training_accuracy(pred, y, expected):
    "One class number for each photo, or for each pixel"
    record = RunRecord('a.json', False)
    record.learn = SimpleNamespace(pred=torch.zeros(pred), yb=(y,), training=True)
    record.hits,record.seen = 0,0
    record.after_pred()
    assert record.seen==expected and 0<=int(record.hits)<=expected

def test_a_place_that_cannot_be_written_is_named_before_the_first_epoch(drawn):
    Path('out').write_text('a file')
    with pytest.raises(Exception) as e: run(drawn, CtrlC('before_epoch',0))
    assert one_line(e, 'out', 'another folder')

@pytest.mark.parametrize('out', ['a'*300, 'a/'*3000])
def test_a_place_that_no_system_has(out):
    with pytest.raises(Exception) as e: check_run(1, 42, Path(out))
    assert one_line(e, out[:9], 'another folder')

def test_a_package_without_metadata(monkeypatch):
    def missing(name): raise runs.PackageNotFoundError(name)
    monkeypatch.setattr(runs, 'version', missing)
    assert versions()['pillow']=='not installed'

def test_a_net_without_convolutions(drawn):
    dls = get_data(drawn, presize=32, resize=32, bs=16)
    learn = get_learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(3*32*32, 10)), 'fp32')
    rec = measured_fit(learn, 1, 1e-3, file, model='linear', recipe='small', size=32, seed=42)
    assert rec['macs']==3*32*32*10

def test_results_are_of_runs_only(drawn):
    run(drawn, epochs=1)
    save_json(Path('out/bench.json'), dict(name='bench', rows=[]))
    assert len(results('out'))==1

def test_fingerprint(tmp_path):
    path = photo_set(tmp_path/'set')
    a,b = path/'train'/'cat'/'0.jpg', path/'train'/'dog'/'0.jpg'
    prints = [fingerprint(path)]
    def changed(): prints.append(fingerprint(path)); return prints[-1] not in prints[:-1]
    os.utime(a, (1,1)); (path/'notes.txt').write_text('hello')
    assert not changed()
    assert fingerprint(shutil.copytree(path, tmp_path/'copy'))==prints[0]
    x = a.read_bytes()
    a.write_bytes(x[:-1]+b'x'); assert changed()
    a.write_bytes(x);           assert not changed()
    a.rename(a.with_name('new.jpg')); assert changed()
    a.with_name('new.jpg').rename(path/'train'/'dog'/'new.jpg'); assert changed()
    b.unlink(); assert changed()
    for split in ('train','val'): (path/split/'cat').rename(path/split/'ape')
    assert changed()   # the same files in the same order, under another label

def test_commit_is_of_the_course_only(tmp_path, monkeypatch):
    "A checkout says its commit; a copy installed inside another project does not say that project's"
    monkeypatch.setattr(resnet_course, '__file__', str(tmp_path/'resnet_course'/'__init__.py'))
    assert commit()=='none'
    me = ['-c','user.name=a','-c','user.email=a@b.c']
    def git(*args): subprocess.run(['git',*me,*args], cwd=tmp_path, check=True, capture_output=True)
    (tmp_path/'a').touch()
    git('init'); git('add','.'); git('commit','-m','a')
    assert commit()=='none'
    (tmp_path/'settings.ini').touch()
    assert re.fullmatch('[0-9a-f]{10}-dirty', commit())
    git('add','.'); git('commit','-m','b')
    assert re.fullmatch('[0-9a-f]{10}', commit())

def test_results_are_of_complete_runs(tmp_path, whole):
    for seed,acc in ((1,.5),(2,.7)):
        save_json(tmp_path/f'fcn-s{seed}.json', dict(whole['rec'], seed=seed, accuracy=acc))
    save_json(tmp_path/'half.json', dict(whole['rec'], complete=False, seed=3))
    runs = results(tmp_path)
    assert set(runs)>={'model','recipe','size','epochs','seed','params','macs','accuracy','precision','data',
        'hardware','seconds_epoch','record'}
    row = summary(runs).loc['fcn']
    assert (row.seeds, round(row.accuracy,6), round(row.spread,6))==(2, .6, round(.2/2**.5,6))

@pytest.mark.parametrize('bs, seconds', [(16, 4+24/16/3), (64, 1+24/64/3)])
def test_how_long_a_fit_would_take(drawn, monkeypatch, bs, seconds):
    "64 photos to train on, 24 to validate; a step takes a second, on a clock of our own, the first of several more"
    now,steps = [0.],[]
    monkeypatch.setattr(runs.time, 'perf_counter', lambda: now[0])
    learn = tiny_learner(drawn)
    learn.dls = get_data(drawn, presize=32, resize=32, bs=bs)
    def step(m, *_):
        now[0] += 1 if steps or bs==64 else 9
        steps.append(1)
    learn.model[0].register_forward_hook(step)
    assert fit_seconds(learn, 1)==pytest.approx(seconds)

# --- what lies beside a record ----------------------------------------------------------------------------------
@pytest.mark.parametrize('name', ['fcn-small-s42.safetensors', 'fcn-small-s42.pth', 'other.pt', 'fcn-small-s42.pt'])
@pytest.mark.parametrize('resume', [False, True])
def test_a_file_of_somebody_s_own_stays(drawn, name, resume):
    "Also one that lies where the checkpoint would: that is said before anything is trained"
    own = Path('out')/name
    own.parent.mkdir()
    torch.save(dict(weights=torch.ones(3)), own)
    before,trained = own.read_bytes(),[]
    if own==ckpt:
        with pytest.raises(Exception) as e: run(drawn, Trains(trained), resume=resume, epochs=1)
        assert one_line(e, ckpt, 'another folder') and not trained
    else: assert run(drawn, resume=resume, epochs=1)[1]['complete']
    assert own.read_bytes()==before

def test_a_new_run_takes_away_what_it_makes(drawn):
    made,other = Path('out/made'),Path('out/other')
    made.parent.mkdir()
    for o in (made,other): o.write_text('of an earlier run')
    with pytest.raises(KeyboardInterrupt): run(drawn, CtrlC('before_batch',0,1), makes=[made])
    assert not made.exists() and other.exists()

@pytest.mark.parametrize('resume', [False,True])
def test_what_a_run_has_made_is_not_deleted_unasked(drawn, resume):
    "Where its record and its checkpoint are gone"
    made,trained = Path('out/made'),[]
    made.parent.mkdir()
    made.write_text('the weights of an earlier run')
    with pytest.raises(Exception) as e: run(drawn, Trains(trained), resume=resume, overwrite=False, makes=[made])
    assert one_line(e, made, '--overwrite', 'another folder') and made.exists() and not trained

@pytest.mark.parametrize('at', ['before_fit', 'before_batch'])
def test_a_new_run_that_dies_at_once_leaves_none_of_the_run_before(drawn, at, whole):
    class Die(Callback):
        order = 99
        def __call__(self, event):
            if event==at: raise MemoryError
    run(drawn)
    with pytest.raises(MemoryError): run(drawn, Die())
    trained = []
    learn,rec = run(drawn, Trains(trained), resume=True)
    assert len(trained)>epochs*4 and outcome(learn, rec)=={k:v for k,v in whole.items() if k!='rec'}

def twice(learn, epochs, lr, cbs):
    for _ in range(2): learn.fit(epochs, lr, cbs=cbs)

@pytest.mark.parametrize('fit', [Learner.fine_tune, partial(Learner.fine_tune, freeze_epochs=2), twice,
    lambda learn,epochs,lr,cbs: learn.fit(epochs+1, lr, cbs=cbs)], ids=['fine_tune','partial','twice','longer'])
@pytest.mark.parametrize('n', [1, 2])
def test_a_record_is_of_one_fit(drawn, fit, n):
    "Said before anything is trained or lost, where that can be known; never taken for a finished run"
    rec,(learn,before,seen) = run(drawn, epochs=n)[1],(tiny_learner(drawn),ckpt.read_bytes(),[])
    learn.add_cb(Trains(seen))
    with pytest.raises(Exception) as e: measured_fit(learn, n, 1e-2, file, fit=fit, overwrite=True, model='fcn', recipe='b', size=32)
    assert one_line(e, file, 'one fit', '`measured_fit`')
    if fit is twice: assert not load_json(file)['complete']
    else: assert not seen and load_json(file)==rec and ckpt.read_bytes()==before

# --- values, names and nets of all kinds ------------------------------------------------------------------------
def small(path, loss=None, net=None, **kwargs):
    set_seed(1)
    dls = get_data(path, 32, 32, 16)
    return get_learner(dls, net() if net else nn.Sequential(nn.Flatten(), nn.Linear(3*32*32, 10)), 'fp32',
                       **(dict(loss_func=loss) if loss else {}), **kwargs)

def fit_small(learn, epochs=1, lr=1e-3, resume=False, out=file, **kwargs):
    return measured_fit(learn, epochs, lr, out, resume, **dict(dict(overwrite=not resume, model='a', recipe='b', size=32, seed=1)|kwargs))

@pytest.mark.parametrize('kwargs, said', [(dict(seed=np.int64(3)), dict(seed=3)), (dict(epochs=np.int64(1)), dict(epochs=1)),
    (dict(lr=np.float32(.5)), dict(lr=.5)), (dict(lr=tensor(.5)), dict(lr=.5)), (dict(lr=slice(.25,.5)), dict(lr=[.25,.5])),
    (dict(lr=slice(.5)), dict(lr=[.5])), (dict(note=(1,np.bool_(True),{'a':np.arange(2)})), dict(note=[1,True,{'a':[0,1]}])),
    (dict(seed=tensor(3)), dict(seed=3))], ids=str)
def test_numbers_of_all_kinds(drawn, kwargs, said):
    "Are in the record as JSON has them, and the run can be resumed"
    rec = fit_small(small(drawn), **kwargs)
    assert rec|said==rec and rec['complete'] and fit_small(small(drawn), resume=True, **kwargs)==rec

@pytest.mark.parametrize('value', [Path('a'), nn.ReLU, {1,2}, {('a',1):2}, [object()], b'x', ['\udcff']],
    ids=['path','class','set','keys','object','bytes','half a letter'])
def test_what_no_record_can_hold_is_said_before_training(drawn, value):
    trained = []
    with pytest.raises(Exception) as e: fit_small(small(drawn, cbs=Trains(trained)), where=value)
    assert one_line(e, 'where', 'JSON') and not trained and not file.exists()

def by_class(pred, targ): return torch.bincount(targ, minlength=10)/len(targ)
@pytest.mark.parametrize('metric, value', [(by_class, list), (lambda *_: None, type(None)), (lambda *_: np.float64(1), float),
    (lambda *_: tensor([1.,math.nan]), list)], ids=['vector','none','numpy','nan'])
def test_metrics_of_all_kinds(drawn, metric, value):
    rec = fit_small(small(drawn, metrics=[accuracy, Whole(metric)]), 2)
    assert rec['complete'] and [type(o['other']) for o in rec['history']]==[value]*2 and rec==load_json(file)
    file.unlink()
    assert fit_small(small(drawn, metrics=[accuracy, Whole(metric)]), 2, resume=True)['history']==rec['history']

class Whole(Metric):
    "What a function says of the last batch, as it is"
    def __init__(self, f): self.f = f
    def reset(self): pass
    def accumulate(self, learn): self.last = self.f(learn.pred, learn.y)
    value,name = property(lambda self: self.last),'other'

class Keeps(nn.Sequential):
    def __init__(self, kept): super().__init__(nn.Flatten(), nn.Linear(3*32*32, 10)); self.kept = kept
    def get_extra_state(self): return dict(kept=self.kept)
    def set_extra_state(self, o): self.kept = o['kept']

@pytest.mark.parametrize('kept', [np.arange(3.), [np.float32(1)], 'text', None])
def test_what_a_net_keeps_can_be_read_again(drawn, kept):
    with pytest.raises(KeyboardInterrupt): fit_small(small(drawn, net=lambda: Keeps(kept), cbs=CtrlC('before_batch',0,2)))
    learn = small(drawn, net=lambda: Keeps(kept))
    assert fit_small(learn, resume=True)['complete']
    learn.model.kept = torch.zeros(9)
    assert fit_small(learn, resume=True)['complete']
    file.unlink()
    fit_small(learn, resume=True)   # from the checkpoint
    assert str(in_json(learn.model.kept))==str(in_json(kept))

def test_what_no_checkpoint_can_hold_is_said_before_training(drawn):
    trained = []
    with pytest.raises(Exception) as e: fit_small(small(drawn, net=lambda: Keeps(Path('a')), cbs=Trains(trained)))
    assert one_line(e, '_extra_state', 'get_extra_state') and not trained

class Pairs(nn.Module):
    def __init__(self): super().__init__(); self.body = nn.Sequential(nn.Flatten(), nn.Linear(3*32*32, 10))
    def forward(self, x): return self.body(x),x
class FirstOfPair(Callback):
    def after_pred(self): self.learn.pred = self.pred[0]
class TrainingNorm(nn.BatchNorm2d):
    def forward(self, x): return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, True)
class Counts(CrossEntropyLossFlat):
    calls = 0
    def __call__(self, *args): self.calls += 1; return super().__call__(*args)

def test_a_net_that_needs_its_callbacks(drawn):
    rec = fit_small(small(drawn, net=Pairs, cbs=FirstOfPair()))
    assert rec['complete'] and fit_small(small(drawn, net=Pairs, cbs=FirstOfPair()), resume=True)==rec

def test_a_net_of_two_inputs(drawn):
    class Two(Pairs):
        def forward(self, a, b): return self.body(a-b)
    set_seed(1)
    dls = DataBlock((ImageBlock,ImageBlock,CategoryBlock), n_inp=2, get_items=get_image_files, item_tfms=Resize(32),
        splitter=GrandparentSplitter(valid_name='val'), getters=[noop,noop,parent_label]).dataloaders(drawn, path=drawn, bs=16,
        num_workers=0)
    rec = fit_small(get_learner(dls, Two(), 'fp32'))
    assert rec['complete'] and rec['macs']==3*32*32*10

def test_an_estimate_changes_nothing(drawn):
    "Neither what a norm has seen, nor what a loss has counted, nor what is drawn"
    class Asks(Callback):
        order = 70
        def before_epoch(self): seen.append((self.model[0].running_mean.tolist(), self.loss_func.calls, torch.rand(1)))
    seen = []
    for fit in (fit_small, lambda learn: learn.fit_one_cycle(1, 1e-3)):
        set_seed(1)
        net = nn.Sequential(TrainingNorm(3), nn.Dropout(.5), nn.Flatten(), nn.Linear(3*32*32, 10))
        fit(small(drawn, Counts(), lambda: net, cbs=Asks()))
    assert seen[0]==seen[1]

@pytest.mark.parametrize('tracker', [partial(EarlyStoppingCallback, patience=3), partial(SaveModelCallback, fname='best'),
    partial(ReduceLROnPlateau, patience=2, factor=100)], ids=['stop','save','plateau'])
@pytest.mark.parametrize('stop', [CtrlC('before_batch',0,2), CtrlC('after_epoch',1), CtrlC('before_batch',3,13), None],
                         ids=['first','between','middle','finished'])
def test_trackers_go_on(drawn, tracker, stop):
    "What they have kept of the epochs before, too; here nothing counts as better after the first epoch"
    def fit(*cbs, resume=False):
        learn = tiny_learner(drawn, cbs=[tracker('valid_loss', min_delta=9.), *cbs])
        return outcome(learn, measured_fit(learn, 6, 1e-2, file, resume, Learner.fit, overwrite=not resume,
                                           model='a', recipe='b', size=32, seed=1))
    whole = fit()
    if stop:
        with pytest.raises(KeyboardInterrupt): fit(stop)
    else: file.unlink()
    assert fit(resume=True)==whole

@pytest.mark.parametrize('model, recipe', [('a/b','c'), ('a','b/c'), ('a','b\0c'), ('a\n','c'), ('a'*300,'c'), ('a','é'*110), ('a\\b','c')])
def test_names_that_no_file_can_have(model, recipe):
    with pytest.raises(Exception) as e: record_file('out', model, recipe, 1)
    assert one_line(e, 'name', 'fewer letters')

def test_a_size_may_be_left_out(drawn):
    "Then multiply-adds are counted for that of the photos"
    learn = tiny_learner(drawn)
    rec = measured_fit(learn, 1, 1e-2, Path('out/a.json'), model='fcn', recipe='small')
    assert 'size' not in rec and rec['complete'] and rec['macs']==measured_fit(tiny_learner(drawn), 1, 1e-2, Path('out/b.json'), model='fcn', recipe='small', size=32)['macs']

@pytest.mark.parametrize('cc, there', [('cc "', False), (' ', False), ('no-such-compiler', False), (f'"{sys.executable}" -x', True)])
def test_a_compiler_of_any_name(drawn, monkeypatch, cc, there):
    monkeypatch.setenv('CC', cc)
    assert runs.circumstances(tiny_learner(drawn).dls)['compiler']==there

def test_what_is_left_of_a_run_is_announced(drawn, capsys):
    with pytest.raises(KeyboardInterrupt): run(drawn, CtrlC('before_batch',2,9))
    assert '3 epochs on sample, batches' in capsys.readouterr().out
    run(drawn, resume=True)
    assert '3 epochs on sample, of which 2 are done, batches' in capsys.readouterr().out

@pytest.mark.parametrize('resume', [True,False])
def test_what_is_said_of_a_spoiled_checkpoint(drawn, capsys, resume):
    "That the run goes on from the one before is said where it does"
    with pytest.raises(KeyboardInterrupt): run(drawn, CtrlC('before_batch',2,9))
    shutil.copy(ckpt, ckpt.with_name(ckpt.name+'.old'))
    ckpt.write_bytes(ckpt.read_bytes()[:1000])
    run(drawn, resume=resume)
    assert ('goes on from the checkpoint before' in capsys.readouterr().out)==resume

def test_what_is_done_last_may_return_nothing(drawn):
    done = []
    rec = fit_small(small(drawn), after=lambda *args: done.append(1))
    assert done==[1] and rec['complete'] and load_json(file)==rec

def test_a_net_that_cannot_be_timed_is_trained(drawn):
    learn = small(drawn, net=Pairs, cbs=FirstOfPair())
    fit_or_show(learn, 1, 1e-3, pd.DataFrame())
    assert len(learn.recorder.values)==1
