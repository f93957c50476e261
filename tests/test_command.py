"The command: what it leaves, what it says, and its exit status"
import shlex, shutil, signal, subprocess, sys
import pytest, torch
from fastai.vision.all import *
from PIL import Image
from resnet_course import cli, data, recipe as recipes
from resnet_course.kit.files import CourseError
from resnet_course.kit.runs import record_file
from resnet_course.kit.sample import make_sample
from conftest import photo, photo_set

@pytest.fixture(scope='module')
def tiny(tmp_path_factory): return make_sample(tmp_path_factory.mktemp('tiny')/'set', n_train=48, n_val=24, size=32)

@pytest.fixture
def command(monkeypatch, capsys):
    "Run the command in this process; its exit status, standard output and standard error"
    def run(*args):
        monkeypatch.setattr(sys, 'argv', ['resnet_course', *map(str, args)])
        with pytest.raises(SystemExit) as e: cli.main()
        return e.value.code or 0, *capsys.readouterr()
    return run

def record(folder, model, seed=42): return json.loads((folder/f'{model}-small-s{seed}.json').read_text())

@pytest.mark.parametrize('words', [('ladder','--models','fcn,resblock'), ('experiment','gamma','--models','MODELS')], ids=['ladder','experiment'])
def test_a_run_that_is_there_is_found_before_the_first_one(tiny, command, words, monkeypatch):
    "Not after the others have been trained"
    models = list(cli._experiment('gamma').nets)[:2] if 'gamma' in words else ['fcn','resblock']
    exp = cli._experiment('gamma') if 'gamma' in words else cli._ladder(tiny, data.run_settings(tiny), 1, None)
    last = record_file(Path('out'), models[1], exp.recipe, 42)
    last.parent.mkdir()
    last.write_text(json.dumps(dict(complete=True)))
    where = ('--data',tiny) if 'ladder' in words else ()
    status,_,err = command(*(','.join(models) if o=='MODELS' else o for o in words), *where, '--epochs', 1, '--out', 'out')
    assert status==1 and str(last) in err and '--overwrite' in err and [o.name for o in Path('out').ls()]==[last.name]

def test_ladder(tiny, command):
    out = Path('out')
    status,text,err = command('ladder', '--data', tiny, '--models', 'resblock,fcn', '--epochs', 1, '--out', out)
    left = {f'{n}-small-s42.{o}' for n in ('fcn','resblock') for o in ('json','pt')}
    assert status==0 and {o.name for o in out.ls()}=={'curves.png', *left}
    for name in ('fcn','resblock'):
        rec = record(out, name)
        assert rec['complete'] and rec['model']==name and rec['settings']==dict(presize=32, resize=32, bs=16)
        assert f"{rec['params']:,}" in text and f"{rec['accuracy']:.1%}" in text
        assert f'--models {name}' in rec['command']
    rows = [l.split()[0] for l in text.splitlines() if re.match('(model|fcn|resblock) ', l)]
    assert rows==['model','fcn','resblock'] and '\nmodel ' in text
    with Image.open(out/'curves.png') as im: im.verify()

    # --resume keeps what is finished, also without its checkpoint; with --overwrite all is trained anew
    before = (out/'fcn-small-s42.json').stat().st_mtime_ns
    (out/'fcn-small-s42.pt').unlink()
    assert command('ladder', '--data', tiny, '--models', 'fcn', '--epochs', 1, '--out', out, '--resume')[0]==0
    assert (out/'fcn-small-s42.json').stat().st_mtime_ns==before
    history = record(out, 'fcn')['history']
    assert command('ladder', '--data', tiny, '--models', 'fcn', '--epochs', 1, '--out', out)[0]==1
    assert (out/'fcn-small-s42.json').stat().st_mtime_ns==before
    assert command('ladder', '--data', tiny, '--models', 'fcn', '--epochs', 1, '--out', out, '--overwrite')[0]==0
    assert (out/'fcn-small-s42.json').stat().st_mtime_ns>before
    again = record(out, 'fcn')['history']
    assert [{**o,'seconds':0} for o in again]==[{**o,'seconds':0} for o in history]   # the same seed, the same numbers

@pytest.mark.parametrize('seed', [-1, 2**32])
def test_a_seed_out_of_range(tiny, command, seed):
    status,_,err = command('ladder', '--data', tiny, '--seed', seed)
    assert status==2 and '--seed' in err and str(2**32-1 if seed>0 else 0) in err and not Path('runs').exists()

def test_precision(tiny, command):
    args = ['ladder','--data',tiny,'--models','fcn','--epochs',1,'--out','out','--precision']
    for precision in ('fp32','bf16'): # which differ in the numbers, so that a run of one is none of the other
        assert command(*args, precision, '--overwrite')[0]==0
        rec = record(Path('out'), 'fcn')
        assert rec['precision']==precision and f'--precision {precision}' in rec['command']
    status,_,err = command(*args, 'fp32', '--resume')
    assert status==1 and 'precision' in err and err.count('\n')==1
    file = Path('out')/'fcn-small-s42.json'   # as if made where another precision is the usual one
    file.write_text(file.read_text().replace('"precision": "bf16"', '"precision": "fp16"'))
    file.with_suffix('.pt').unlink()
    status,_,err = command(*args, 'bf16', '--resume')   # a record is refused as a checkpoint is
    assert status==1 and 'another run' in err and 'precision' in err
    assert command(*args, 'bf16', '--overwrite')[0]==0 and record(Path('out'), 'fcn')['precision']=='bf16'
    status,_,err = command(*args, 'fp8')
    assert status==1 and "'fp8'" in err and err.count('\n')==1

def test_fewer_photos_than_a_batch(command):
    "The batch is made smaller: the command has no option for it"
    path = photo_set(Path('few'), n=2)
    status,_,err = command('ladder', '--data', path, '--models', 'fcn', '--epochs', 1, '--out', 'out')
    assert status==0, err
    assert json.loads(Path('out/fcn-small-s42.json').read_text())['settings']['bs']==4

def test_no_room_on_the_gpu(command, monkeypatch):
    def full(*args): raise torch.OutOfMemoryError('CUDA out of memory. Tried ...')
    monkeypatch.setattr(data, 'course_path', full)
    status,_,err = command('train')
    assert status==1 and err.startswith("error: the GPU's memory is too small") and err.count('\n')==1

def test_the_usual_place(tiny, command):
    assert command('ladder', '--data', tiny, '--models', 'fcn', '--epochs', 1, '--seed', 3)[0]==0
    assert record(Path('runs')/'ladder-sample', 'fcn', 3)['seed']==3

@pytest.mark.parametrize('args, words', [
    (['--epochs',0], ['--epochs 0', 'give 1 or more']), (['--epochs',-2], ['--epochs -2']),
    (['--models','resnet81'], ["no model 'resnet81'", 'resnet18', 'resnet50']),
    (['--models','fcn,rezblock'], ["no model 'rezblock'", 'resblock']),
    (['--models',','], ["no model ''", 'fcn']),
    (['--models','qqq'], ["no model 'qqq'", *cli.rungs]), (['--data','nowhere'], ['nowhere', 'no such folder']),
    (['--data','.'], ['no images'])])
def test_errors(args, words, command):
    status,out,err = command('ladder', *args)
    assert status==1 and err.startswith('error: ') and err.count('\n')==1 and all(w in err for w in words)
    assert out=='' and not Path('runs').exists()

def test_a_broken_photo(command):
    path = photo_set(Path('set'), n=100)
    bad = path/'train'/'cat'/'bad.jpg'
    bad.write_text('x')
    status,out,err = command('ladder', '--data', path, '--models', 'fcn', '--epochs', 1)
    assert status==1 and err.startswith('error: ') and err.count('\n')==1 and str(bad) in err

def test_usage(command):
    assert command('ladder', '--epochs', 'x')[0]==2 and command('lader')[0]==2
    for args in (['--help'], ['ladder','--help']): assert command(*args)[0]==0

def test_help_imports_nothing_heavy():
    code = "import sys, resnet_course.cli as c\ntry: c.main()\nfinally: assert not {'torch','fastai'}&set(sys.modules)"
    assert subprocess.run([sys.executable,'-c',code,'--help'], capture_output=True).returncode==0

@pytest.mark.parametrize('workers', [0,2])
def test_ctrl_c_and_resume(tiny, command, workers):
    "Sent to the whole process group, as a terminal does: the DataLoader workers get it too. From Python 3.14 on they inherit no handler"
    path = Path(shutil.copytree(tiny, 'photos'))
    if workers: (path/'sample.json').unlink()   # the drawn sample is loaded without any
    out,args = Path('out'), ['ladder','--data',path,'--models','fcn,resnet18','--epochs',4,'--out','out']
    code = 'import multiprocessing; multiprocessing.set_start_method("forkserver"); from resnet_course import cli,data; ' \
           f'data.n_workers = lambda *_: {workers}; cli.main()'
    p = subprocess.Popen([sys.executable,'-c',code,*map(str,args)],
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        while p.poll() is None and not Path('out/resnet18-small-s42.pt').exists(): time.sleep(.01)
        assert p.poll() is None, p.communicate()
        os.killpg(p.pid, signal.SIGINT)
        _,err = p.communicate(timeout=120)
    finally:
        if p.poll() is None: p.kill()
    assert p.returncode==130 and 'stopped in resnet18' in err and '--resume' in err and 'Traceback' not in err
    assert record(out,'fcn')['complete'] and not record(out,'resnet18')['complete']
    before = (out/'fcn-small-s42.json').stat().st_mtime_ns
    status,text,_ = command(*args, '--resume')
    assert status==0 and (out/'fcn-small-s42.json').stat().st_mtime_ns==before
    assert record(out,'resnet18')['complete'] and len(record(out,'resnet18')['history'])==4
    assert re.search(r'^resnet18 ', text, re.M)

def test_resume_of_other_data(tiny, command):
    "A finished record is kept only for the photos that were asked for"
    args = ['ladder','--models','fcn','--epochs',1,'--out','out']
    assert command(*args, '--data', tiny)[0]==0
    other = make_sample(Path('other'), n_train=48, n_val=24, size=32, seed=1)
    status,_,err = command(*args, '--data', other, '--resume')
    assert status==1 and err.startswith('error: ') and 'data' in err and err.count('\n')==1

def test_experiment(tiny, command, monkeypatch):
    monkeypatch.setenv('RESNET_COURSE_CIFAR10', str(tiny))
    args = ['experiment','degradation','--models','residual20,plain20','--epochs',1,'--seed',3]
    status,text,_ = command(*args)
    out = Path('runs')/'degradation'
    assert status==0 and {o.name for o in out.glob('*.*')}>={'plain20-sgd-s3.json','residual20-sgd-s3.json','curves.png'}
    rec = json.loads((out/'plain20-sgd-s3.json').read_text())
    assert rec['complete'] and rec['params']==269_722 and rec['lr']==.1 and rec['size']==32
    assert rec['command']=='resnet_course experiment degradation --epochs 1 --seed 3 --models plain20'
    assert set(rec['history'][0])>={'train_loss','train_accuracy','valid_loss','accuracy'}
    before = (out/'plain20-sgd-s3.json').stat().st_mtime_ns
    assert command(*args, '--resume')[0]==0 and (out/'plain20-sgd-s3.json').stat().st_mtime_ns==before

@pytest.mark.parametrize('args, words', [
    (['degredation'], ["no experiment 'degredation'", 'degradation']),
    (['degradation','--models','plain21'], ["no model 'plain21'", 'plain20']),
    (['degradation','--epochs',0], ['give 1 or more'])])
def test_errors_of_experiment(args, words, command):
    status,out,err = command('experiment', *args)
    assert status==1 and err.startswith('error: ') and err.count('\n')==1 and all(w in err for w in words)

# --- train and reproduce ----------------------------------------------------------------------------------------
def test_train(tiny, command):
    args = ['train','--recipe','tiny','--model','fcn','--data',tiny,'--epochs',1,'--size',40,'--seed',3,'--out','out']
    status,text,_ = command(*args)
    left = {f'fcn-tiny-s3.{o}' for o in ('json','pt','safetensors')}
    assert status==0 and {o.name for o in Path('out').ls()}=={'curves.png', *left}
    rec = json.loads(Path('out/fcn-tiny-s3.json').read_text())
    assert rec['complete'] and (rec['size'],rec['epochs'],rec['settings']['presize'])==(40,1,50)
    assert f"{rec['accuracy']:.1%}" in text
    before = Path('out/fcn-tiny-s3.json').stat().st_mtime_ns
    assert command(*args, '--resume')[0]==0 and Path('out/fcn-tiny-s3.json').stat().st_mtime_ns==before
    assert command('train', '--recipe', 'tiny', '--data', tiny, '--epochs', 1, '--precision', 'fp32')[0]==0
    assert json.loads(Path('runs/train-sample/resblock-tiny-s42.json').read_text())['precision']=='fp32'

@pytest.mark.parametrize('args, presize', [([], 160), (['--size',224], 280), (['--recipe','resnet50-20ep'], 224)])
def test_train_asks_for_photos_that_are_large_enough(command, monkeypatch, args, presize):
    asked = []
    def path(name, presize): asked.append(presize); raise CourseError('enough')
    monkeypatch.setattr('resnet_course.data.course_path', path)
    assert command('train', *args)[0]==1 and asked==[presize]

@pytest.mark.parametrize('args, words', [
    (['--recipe','imagenette-6ep'], ["no recipe 'imagenette-6ep'", 'imagenette-5ep']),
    (['--model','resnet19'], ["no model 'resnet19'", 'resnet18']), (['--epochs',0], ['give 1 or more']),
    (['--data','nowhere'], ['nowhere','no such folder']), (['--data','.'], ['no images']),
    (['--data','.','--size',8], ['size 8'])])
def test_errors_of_train(args, words, command):
    status,out,err = command('train', *args)
    assert status==1 and err.startswith('error: ') and err.count('\n')==1 and all(w in err for w in words)
    assert out=='' and not Path('runs').exists()

def test_the_help_of_train_names_the_recipes(command):
    "All but variants, and what another command trains or an experiment compares"
    _,text,_ = command('train', '--help')
    named = re.search(r'--recipe \S+(.*) or a\s+variant', text, re.S)[1].replace(',', ' ').split()
    others = [*recipes.speed_targets.values(), 'held-64', *(o for o in recipes.recipes if o.startswith('screen-'))]
    assert set(named)=={o for o in recipes.recipes if o not in others and not any(o.startswith(f'{k}-') for k in recipes.recipes)}

@pytest.mark.parametrize('kind', ['ladder','train','experiment','recipe'])
def test_reproduce(kind, tiny, command, monkeypatch):
    "A record of each kind gives the same run again"
    monkeypatch.setenv('RESNET_COURSE_CIFAR10', str(tiny))
    args = dict(ladder=['--models','fcn','--data',tiny,'--precision','fp32','--out','out'],
                train=['--recipe','tiny','--model','fcn','--data',tiny,'--precision','fp32','--out','out'],
                experiment=['degradation','--models','plain20','--out','out'])
    if kind=='recipe':   # one that has no name in the course
        mine = recipes.Recipe('mine', model='fcn', size=32, presize=32, bs=16, opt='adam')
        recipes.train(tiny, mine, epochs=1, seed=3, out='out', precision='fp32')
    else: assert command(kind, *args[kind], '--epochs', 1, '--seed', 3)[0]==0
    file, = Path('out').ls(file_exts='.json')
    status,text,err = command('reproduce', file, *([] if kind=='experiment' else ['--data',tiny]))
    assert (status,err)==(0,'')
    a,b = (json.loads(f.read_text()) for f in (file, Path('runs/reproduce')/file.name))
    for r in (a,b): r['history'][0].pop('seconds'); r.pop('seconds'); r.pop('command')
    assert a==b and f"accuracy {a['accuracy']:.2%}, the record has {a['accuracy']:.2%}: the same" in text
    for word in (a['model'], a['recipe'], 'seed 3', '1 epoch on', a['precision']): assert word in text

@pytest.fixture(scope='module')
def trained(tiny, tmp_path_factory):
    "The folder of a run that the command has made"
    out = tmp_path_factory.mktemp('trained')/'out'
    torch.set_num_threads(1)
    args = ['train','--recipe','tiny','--model','fcn','--data',tiny,'--epochs',1,'--out',out]
    with pytest.MonkeyPatch.context() as m, pytest.raises(SystemExit) as e:
        m.setattr(sys, 'argv', ['resnet_course', *map(str, args)])
        cli.main()
    assert not e.value.code
    return out

@pytest.fixture
def a_record(trained):
    shutil.copytree(trained, 'out')
    file = Path('out/fcn-tiny-s42.json')
    return file, json.loads(file.read_text())

def test_reproduce_says_what_differs(tiny, command, a_record):
    file,rec = a_record
    rec['versions']['torch'],rec['accuracy'] = '1.0',rec['accuracy']-.1
    Path('a.json').write_text(json.dumps(rec))
    status,text,err = command('reproduce', 'a.json', '--data', tiny)
    assert status==0 and err.startswith('warning: ') and 'torch 1.0 (here ' in err and err.count('\n')==1
    assert 'fastai' not in err and '+10.00 points' in text

def test_reproduce_in_another_precision(tiny, command, a_record):
    "As one must where the record's is not available"
    file,rec = a_record
    other = 'bf16' if rec['precision']=='fp32' else 'fp32'
    status,_,err = command('reproduce', file, '--data', tiny, '--precision', other)
    assert status==0 and f"precision {rec['precision']} (here {other})" in err and err.count('\n')==1
    assert json.loads((Path('runs/reproduce')/file.name).read_text())['precision']==other

@pytest.fixture
def refused(command):
    "What `reproduce` says where it refuses, before it writes anything"
    def run(*args):
        status,out,err = command('reproduce', *args)
        assert status==1 and out=='' and err.startswith('error: ') and err.count('\n')==1
        assert not Path('runs/reproduce').exists()
        return err
    return run

def test_errors_of_reproduce(tiny, refused, a_record):
    file,rec = a_record
    other = make_sample(Path('other'), n_train=48, n_val=24, size=32, seed=1)
    assert all(w in refused(file, '--data', other) for w in ('other', rec['data']['fingerprint'], '--data'))
    Path('a.json').write_text(json.dumps(dict(rec, data=dict(rec['data'], name='cats'))))
    assert all(w in refused('a.json') for w in ('cannot fetch (cats)', '--data'))   # and Imagenette is not fetched
    Path('a.json').write_text(json.dumps(dict(rec, settings=dict(rec['settings'], colour='red'))))
    assert 'another version' in refused('a.json', '--data', tiny)
    assert 'another folder' in refused(file, '--data', tiny, '--out', 'out')
    assert 'nowhere.json is not a readable record' in refused('nowhere.json')
    for text,words in (('{','b.json is not a readable'), ('{"rows":[], "command":"resnet_course bench"}','resnet_course bench')):
        Path('b.json').write_text(text)
        assert words in refused('b.json')

no_record = 'not the record of a training run'
sizes = dict(presize=32, resize=32, bs=16)
@pytest.mark.parametrize('changes, says', [
    (dict(model='mine'), "no model 'mine'"), (dict(command='train(path, recipe, mine, 1, 32, 42)'), 'net of your own'),
    (dict(complete=False), 'was stopped'), (dict(hardware={}), no_record), (dict(data=dict(name='cats')), no_record),
    (dict(command='resnet_course train'), f'{no_record}; this makes it'),
    (dict(command='resnet_course experiment degradatoin'), "no experiment 'degradatoin'"),
    *((dict(command='resnet_course ladder --data sample', settings=o), no_record)
      for o in (dict(presize=32), dict(sizes, more=1), dict(sizes, bs=0))),
    *(({k:o}, no_record)   # by hand, say
      for k in ('settings','hardware','versions','seed','seconds','accuracy','data','epochs','model')
      for o in (None, 7 if k=='model' else 'x', []))], ids=str)
def test_a_record_that_was_changed_is_not_reproduced(tiny, refused, a_record, changes, says):
    Path('a.json').write_text(json.dumps(a_record[1]|changes))
    assert says in refused('a.json', '--data', tiny)

@pytest.mark.parametrize('gone', ['settings','hardware','versions','seed','seconds','recipe'])
def test_half_a_record_is_not_reproduced(tiny, refused, a_record, gone):
    Path('a.json').write_text(json.dumps({k:o for k,o in a_record[1].items() if k!=gone}))
    assert no_record in refused('a.json', '--data', tiny)

# --- doctor -----------------------------------------------------------------------------------------------------
def test_doctor(command):
    status,out,err = command('doctor')
    assert (status,err)==(0,'')
    assert all(w in out for w in ('python','torch','fastai','device','precision','data','nothing is wrong'))

@pytest.mark.parametrize('name, there', [('torch','99.1'), ('pandas','0.1'), ('torch','99.1+cpu')])
def test_doctor_names_what_no_test_has_seen(command, monkeypatch, name, there):
    from importlib.metadata import version
    monkeypatch.setattr('resnet_course.doctor.version', lambda o: there if o==name else version(o))
    out = command('doctor')[1]
    assert f'  untested   {name} {there} (tested: ' in out and out.count('(tested: ')==1

@pytest.mark.parametrize('harm, says', [
    (lambda m: m.setattr(shutil, 'disk_usage', lambda _: SimpleNamespace(free=4e8)), 'only 0.4 GB free; make room'),
    (lambda m: m.setattr(os, 'access', lambda _,mode: mode!=os.W_OK|os.X_OK), 'it cannot be written to; go to a folder of yours'),
    (lambda m: m.setitem(sys.modules, 'torchvision.ops', None), 'reinstall them: pip install')], ids=['full','locked','packages'])
def test_doctor_says_what_to_do(command, monkeypatch, harm, says):
    harm(monkeypatch)
    status,out,_ = command('doctor')
    assert status==1 and re.search(f'^! .*: {says}', out, re.M)

def test_doctor_lists_broken_photos(command):
    path = photo_set(Path('set'))
    assert command('doctor', '--data', path)[0]==0
    bad = [path/'train'/'cat'/'a.jpg', path/'val'/'dog'/'b.jpg']
    for f in bad: f.write_text(f.name)
    status,out,_ = command('doctor', '--data', path)
    assert status==1 and '2 to mend' in out
    for f in bad:
        line, = (o for o in out.splitlines() if str(f) in o)   # once, with the way out
        assert line.startswith('! broken') and line.endswith(': repair or remove it')

def test_a_name_that_cannot_be_printed(tmp_path):
    path = photo_set(tmp_path/'set')
    with open(os.fsencode(path)+b'/train/cat/\xff.jpg', 'w') as f: f.write('x')
    p = subprocess.run([sys.executable,'-c','from resnet_course.cli import main; main()','doctor','--data',path],
                       env=os.environ|dict(PYTHONIOENCODING='utf-8:strict'), capture_output=True, text=True)
    assert p.returncode==1 and '1 to mend' in p.stdout and 'udcff.jpg' in p.stdout and 'Traceback' not in p.stderr

def test_doctor_names_photos_in_both_splits(command):
    "Copies under another name, in whichever class; not one of the same size"
    path = photo_set(Path('set'))
    (path/'val/cat/other.jpg').write_bytes(data:=photo(path/'train/dog/own.jpg', (1,2,3)).read_bytes())
    (path/'val/dog/like.jpg').write_bytes(data[:-1]+b'0')
    status,out,_ = command('doctor', '--data', path)
    line, = (o for o in out.splitlines() if 'copied' in o)
    assert status and 'val/cat/other.jpg is' in line and 'train/dog/own.jpg' in line and 'remove one of them' in line

@pytest.mark.parametrize('folder', ['nowhere','.'])
def test_doctor_and_a_folder_that_is_no_set(command, folder):
    status,out,_ = command('doctor', '--data', folder)
    assert status==1 and '1 to mend' in out

def test_doctor_and_what_is_no_folder_of_photos(command, monkeypatch):
    Path('a.zip').write_bytes(b'x')
    status,out,_ = command('doctor', '--data', 'a.zip')
    assert status==1 and 'broken' not in out and out.count('\n!')==1
    monkeypatch.setenv('RESNET_COURSE_DATA', str(Path('gone').resolve()))
    assert 'gone' in command('doctor', '--data', 'imagenette')[1]   # as `train --data imagenette` would
    monkeypatch.setenv('RESNET_COURSE_DATA', 'cifar10')
    for args in ([], ['--data','fashion']):
        status,out,_ = command('doctor', *args)
        assert status==0 and 'for the experiments' in out

@pytest.mark.parametrize('why', [None, 'no C compiler: install one'])
def test_doctor_and_the_c_loops(command, monkeypatch, why):
    "Whether they are on, and why not; that is nothing to mend"
    monkeypatch.setattr('resnet_course.speed.c_loops', lambda: why)
    status,out,_ = command('doctor')
    assert status==0 and re.search(f"^  C loops +{f'off: {why}' if why else 'on'}$", out, re.M)

def test_doctor_and_the_caches(command, monkeypatch):
    monkeypatch.setattr('resnet_course.kit.caches.cache_bytes', lambda: 2_345_678_901)
    assert re.search('^  caches +2.3 GB of decoded photos$', command('doctor')[1], re.M)

@pytest.fixture
def no_home(monkeypatch):
    "As for a container's user: fastai's folder cannot be made. With what the system says, and where"
    def set_home(error, at=None):
        def fail(*_): raise error
        monkeypatch.delenv('FASTAI_HOME')
        if at: monkeypatch.setenv('FASTAI_HOME', at)
        monkeypatch.setattr('fastai.data.external.fastai_cfg', fail)
    return set_home

@pytest.mark.parametrize('at', [None, '/proc/data'])
@pytest.mark.parametrize('error, says', [(PermissionError(13, 'Permission denied', '/.fastai'), 'Permission denied'),
    (OSError(30, 'Read-only file system', '/.fastai'), 'Read-only file system'),
    (RuntimeError('Could not determine home directory.'), 'Could not determine home directory')])
def test_doctor_without_a_home(command, no_home, error, says, at):
    no_home(error, at)
    status,out,err = command('doctor')
    line, = re.findall('^! (data kept .*)$', out, re.M)
    assert status==1 and err=='' and line.endswith(f'data: {says}; set FASTAI_HOME to a folder of yours'.removeprefix('data'))
    assert (at or '.fastai') in line and 'runs kept' in out and '1 to mend' in out

@pytest.mark.parametrize('args', [['ladder','--data','sample'], ['train','--data','sample'], ['train'], ['progress']])
def test_runs_without_a_home(command, no_home, args):
    "What needs fastai's folder says how to get one; own photos do without"
    no_home(PermissionError(13, 'Permission denied', '/home-of-nobody/config.ini'), '/home-of-nobody')
    status,out,err = command(*args)
    assert (status,out)==(1,'')
    assert err=='error: /home-of-nobody/config.ini: Permission denied; set FASTAI_HOME to a folder of yours\n'

def test_own_photos_without_a_home(command, no_home):
    no_home(PermissionError(13, 'Permission denied', '/.fastai'))
    path = photo_set(Path('set'))
    assert command('train', '--recipe', 'tiny', '--model', 'fcn', '--data', path, '--epochs', 1)[0]==0

# --- ways in, and ways out ----------------------------------------------------------------------------------------
def by_python(*args, **env):
    return subprocess.run([sys.executable, '-m', *map(str, args)], env=os.environ|env,
                          capture_output=True, text=True)

@pytest.mark.parametrize('module', ['resnet_course','resnet_course.cli'])
def test_by_the_name_of_a_module(module):
    helped,wrong = by_python(module, '--help'),by_python(module, 'train', '--data', 'nowhere')
    assert helped.returncode==0 and 'ladder' in helped.stdout
    assert wrong.returncode==1 and wrong.stderr.startswith('error: nowhere: no such folder') and wrong.stdout==''

def test_an_import_runs_nothing():
    code = 'import resnet_course.__main__, sys; assert "torch" not in sys.modules'
    p = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert (p.returncode, p.stdout, p.stderr)==(0,'','')

@pytest.mark.parametrize('backend', ['module://no_such.inline','nonsense','TkAgg'])
def test_a_backend_from_elsewhere(backend, tiny):
    "Such as a notebook hands on to the commands that it starts"
    p = by_python('resnet_course', 'train', '--recipe', 'tiny', '--model', 'fcn', '--data', tiny, '--epochs', 1,
                  '--out', 'out', MPLBACKEND=backend, DISPLAY='')
    assert (p.returncode, p.stderr)==(0,'')
    with Image.open('out/curves.png') as im: im.verify()

def test_curves_that_cannot_be_drawn(tiny, command, monkeypatch):
    "All is saved by then: a warning, and the run is done"
    def fail(*args): raise ValueError('no font\nanywhere')
    monkeypatch.setattr('resnet_course.kit.results.plot_history', fail)
    status,out,err = command('train', '--recipe', 'tiny', '--model', 'fcn', '--data', tiny, '--epochs', 1, '--out', 'out')
    assert status==0 and err=='warning: the curves could not be drawn (ValueError: no font)\n'
    assert out.endswith('records are in out\n') and {'.json','.safetensors'} <= {o.suffix for o in Path('out').ls()}

def test_ctrl_c_outside_of_training(command, monkeypatch):
    "While modules are imported, or photos are looked for"
    def stop(*args): raise KeyboardInterrupt
    monkeypatch.setattr('resnet_course.data.course_path', stop)
    for name in ('ladder','train'):
        status,out,err = command(name)
        assert (status,out,err)==(130,'','\nstopped\n')

@pytest.mark.parametrize('name', ['ladder','train','reproduce'])
@pytest.mark.parametrize('precision, says', [('half', "no precision 'half'; use one of fp32, bf16, fp16"), ('', "no precision ''"),
    ('bf17', "no precision 'bf17'; the nearest names: bf16"), ('fp16', "'fp16' does not work on cpu: use 'fp32' or 'bf16'")])
def test_a_precision_is_refused_at_once(command, monkeypatch, a_record, name, precision, says):
    "Before a photo is looked for"
    monkeypatch.setattr('resnet_course.data.course_path', lambda *_: 1/0)
    what = a_record[:1] if name=='reproduce' else ['--data','set']
    status,out,err = command(name, *what, '--precision', precision)
    assert status==1 and out=='' and err.startswith('error: ') and err.count('\n')==1 and says in err

def test_a_record_of_another_device(command, monkeypatch, a_record):
    file,rec = a_record
    file.write_text(json.dumps(dict(rec, precision='fp16')))
    monkeypatch.setattr('resnet_course.data.course_path', lambda *_: 1/0)
    assert "'fp16' does not work on cpu" in command('reproduce', file)[2]

@pytest.mark.parametrize('args', [['ladder','--models','fcn'], ['train'], ['experiment','degradation'], ['bench']])
def test_out_is_no_folder(command, monkeypatch, args):
    "Said before the photos are looked for"
    monkeypatch.setattr('resnet_course.data.course_path', lambda *_: 1/0)
    Path('file').touch()
    for out in ('file','file/runs'):
        status,said,err = command(*args, '--out', out)
        assert status==1 and said=='' and err.startswith(f'error: --out {out}: ') and 'is no folder' in err
        assert err.count('\n')==1

odd = ['%s {0} {} %(x)s', '[red]x[/red]', '$x_{$', '{1!r:>{2}}', 'a  b']
@pytest.mark.parametrize('text', odd)
def test_user_text_is_no_format(command, text):
    "In a folder's name, a place, a model's name, a word too much: it comes back as it was written"
    for args in (['train','--data',text], ['train','--recipe',text], ['ladder','--models',text], ['experiment',text],
                 ['reproduce',text], ['bench','--parts',text], ['doctor','--data',text]):
        status,out,err = command(*args)
        told = out if args[0]=='doctor' else err
        assert status==1 and (text[:1] if args[0]=='bench' else text) in told and 'Traceback' not in told
        if args[0]!='doctor': assert out=='' and err.count('\n')==1
    status,_,err = command('train', text)
    assert status==2 and text in err

@pytest.mark.parametrize('text', odd)
def test_folders_of_any_name(command, text):
    text = text.replace('/', '')
    path = photo_set(Path(text), (text,'dog'), (text,'dog'))
    status,out,err = command('train', '--recipe', 'tiny', '--model', 'fcn', '--data', path, '--epochs', 1, '--out', f'out {text}')
    assert (status,err)==(0,'') and out.endswith(f'records and curves.png are in out {text}\n')
    assert json.loads((Path(f'out {text}')/'fcn-tiny-s42.json').read_text())['data']['name']==text

@pytest.mark.parametrize('text', odd)
def test_pictures_of_any_name(text):
    "A dollar in the name of a net or a class begins no formula"
    from resnet_course.interpret import show_map
    from resnet_course.kit.results import plot_history
    from resnet_course.landscape import plot_surfaces
    rec = dict(model=text, history=[dict(epoch=0, valid_loss=1., accuracy=.5)])
    curves = plot_history([rec, dict(rec, model='$x')])[1]
    shown = [o.get_text() for o in curves.get_legend().get_texts()]
    point = dict(xs=[0,1], ys=[0,1], losses=[[1.,2.],[3.,4.]])
    fig = plot_surfaces([dict(model=text, surface=point)])
    ax = plt.figure().add_subplot()
    show_map(torch.rand(3,4,4), torch.rand(2,2), ax, text)
    for o in (curves.figure, fig, ax.figure): o.savefig('a.png')
    assert shown==[text,'$x'] and ax.get_title()==fig.axes[0].get_title()==text
    plt.close('all')

@pytest.mark.parametrize('error, says', [
    (OSError(28, 'No space left on device', 'runs/a.json'), 'runs/a.json: No space left on device; make room'),
    (PermissionError(13, 'Permission denied', 'x'), 'x: Permission denied; take a place of yours'),
    (OSError('it is broken'), 'it is broken'), (CourseError('this; do that'), 'this; do that'),
    (RuntimeError('DataLoader worker (pid 7) is killed by signal: Bus error.'), '/dev/shm'),
    (RuntimeError('DataLoader worker (pid(s) 7, 8) exited unexpectedly'), '/dev/shm')])
def test_what_a_user_can_mend(command, monkeypatch, error, says):
    def fail(*args): raise error
    monkeypatch.setattr('resnet_course.data.course_path', fail)
    status,out,err = command('train')
    assert status==1 and out=='' and err.startswith('error: ') and says in err and err.count('\n')==1 and 'Errno' not in err

def test_a_bug_keeps_its_trace(monkeypatch):
    monkeypatch.setattr('resnet_course.data.course_path', lambda *_: 1/0)
    monkeypatch.setattr(sys, 'argv', ['resnet_course','train'])
    with pytest.raises(ZeroDivisionError): cli.main()

@pytest.mark.parametrize('args', [['ladder','--data',''], ['train','--data',''], ['bench','--data',''], ['doctor','--data',''],
    ['bench','--parts',''], ['bench','--repeats',0], ['experiment','degradation','--models',''], ['train','--model',''],
    ['train','--recipe',''], ['train','--size',0], ['train','--size',-3], ['train','--epochs',0]])
def test_empty_and_nothing(command, monkeypatch, args):
    "An empty word is not the default: a script's variable may be unset"
    monkeypatch.setattr('resnet_course.data.course_path', lambda *_: 1/0)
    status,out,err = command(*args)
    assert status==1 and out=='' and err.startswith('error: ') and err.count('\n')==1

@pytest.mark.parametrize('closed', ['>&-','2>&-'])
def test_an_output_that_is_closed(closed):
    "As a daemon's may be"
    code = f'{shlex.quote(sys.executable)} -m resnet_course progress {closed}'
    res = subprocess.run(['bash', '-c', code], capture_output=True, text=True)
    assert res.returncode==0 and res.stderr==''

def test_reset_removes_only_a_progress(tmp_path, monkeypatch, command):
    monkeypatch.setenv('RESNET_COURSE_PROGRESS', str(tmp_path/'mine.json'))
    for text in ('hello', '{"name": "mine"}', '["mine"]', '{"resblock": 3}'):
        (tmp_path/'mine.json').write_text(text)
        status,_,err = command('progress', '--reset')
        assert status==1 and 'does not hold a progress' in err and (tmp_path/'mine.json').read_text()==text

steering = '\x1b[2J\x9b31m\x07\u202e'
def test_no_name_steers_the_terminal(command, monkeypatch):
    "Of a folder, a class, a place, a word too much; nor does what a library prints"
    path = photo_set(Path(f'a{steering}'), (f'cat{steering}','dog'), (f'cat{steering}','dog'))
    (path/'train'/f'emu{steering}').mkdir()
    photo(path/'train'/'dog'/f'deep{steering}'/'1.jpg')
    (path/'val'/'dog'/f'x{steering}.jpg').write_text('no photo')
    def by_a_library(*args, **kwargs):
        print(f'by a library {steering}')
        raise CourseError(steering)
    monkeypatch.setattr('resnet_course.data.get_data', by_a_library)
    for args in (['doctor','--data',path], ['train','--recipe','tiny','--model','fcn','--data',path,'--epochs',1,'--out',f'out{steering}'],
                 ['ladder','--data',path], ['experiment',steering], ['reproduce',steering], ['train',steering], ['bench','--parts',steering]):
        status,out,err = command(*args)
        assert status and not set('\x1b\x9b\x07\u202e') & set(out+err) and r'\x1b' in out+err, args

@pytest.mark.parametrize('args', [['ladder'], ['experiment','degradation'], ['bench'], ['speedrun'], ['reproduce']])
def test_only_train_runs_in_several_processes(command, monkeypatch, args):
    record = next((Path(__file__).parent.parent/'results'/'ladder').glob('*.json'))
    monkeypatch.setenv('WORLD_SIZE', '2')
    monkeypatch.setattr('resnet_course.data.course_path', lambda *_: 1/0)
    status,out,err = command(*args, *([record] if args==['reproduce'] else []))
    assert status==1 and out=='' and err.startswith('error: WORLD_SIZE is 2: only `resnet_course train`') and err.count('\n')==1
