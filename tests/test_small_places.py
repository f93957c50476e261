"Where there is little of something: it works with less, `doctor` says so, and what cannot work ends in one line"
import os, subprocess, sys
import pytest
from pathlib import Path
from resnet_course import data
from resnet_course.data import n_workers

linux = pytest.mark.skipif(sys.platform!='linux', reason='limits of other systems differ')
no_threads = '''import threading
def start(self): raise RuntimeError("can't start new thread")
threading.Thread.start = start'''
few_files = 'import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (64,64))'
little_memory = 'import resource; resource.setrlimit(resource.RLIMIT_AS, (2**29,2**29))'
small_shm = ['unshare','-rm','sh','-c','mount -t tmpfs -o size=64m none /dev/shm && exec "$@"','sh']

def command(*args, before='', within=(), **env):
    "What the command says in such a place, and its exit status"
    code = f'import sys\n{before}\nfrom resnet_course.cli import main\nmain()'
    p = subprocess.run([*within, sys.executable,'-W','ignore','-c',code,*map(str,args)], capture_output=True, text=True,
                       env={**os.environ, 'OMP_NUM_THREADS':'1', **env}, timeout=300)
    assert 'Traceback' not in p.stderr, p.stderr
    return p.returncode,p.stdout,p.stderr

@pytest.mark.faults('a place is small')
@linux
@pytest.mark.parametrize('before, says', [(few_files,'64 open files'), (no_threads,'no threads')])
def test_it_works_with_less(drawn, before, says):
    args = ['train','--recipe','tiny','--model','fcn','--data',drawn,'--epochs',1,'--out','out']
    status,_,err = command(*args, before=before)
    assert status==0 and not err and Path('out/fcn-tiny-s42.json').exists()
    status,out,_ = command('doctor', before=before)
    assert '  small      ' in out and says in out

@pytest.mark.faults('a place is small')
@linux
def test_little_shared_memory():
    if subprocess.run([*small_shm,'true'], capture_output=True).returncode: pytest.skip('no mounts may be made here')
    assert 'MB of shared memory: fewer processes load photos' in command('doctor', within=small_shm)[1]

@pytest.mark.faults('a place is small')
def test_no_compiler(drawn, tmp_path):
    env = dict(PATH=str(tmp_path), CC='', XDG_CACHE_HOME=str(tmp_path/'cache'))
    args = ['train','--recipe','tiny','--model','fcn','--data',drawn,'--epochs',1,'--out','out']
    assert command(*args, **env)[0]==0 and '  C loops    off: ' in command('doctor', **env)[1]

@pytest.mark.faults('a place is small')
@linux
def test_too_little_memory(drawn):
    status,out,err = command('ladder','--data',drawn, before=little_memory)
    assert status==1 and out=='' and err.startswith('error: ') and err.count('\n')==1 and 'memory' in err

@pytest.mark.parametrize('files, workers', [(1024,8), (256,8), (64,1), (50,0), (10,0), (float('inf'),8)])
def test_workers_fit_into_the_open_files(monkeypatch, capsys, files, workers):
    monkeypatch.setattr(data, 'shared_memory', lambda: 10**12)
    monkeypatch.setattr(data, 'num_cpus', lambda: 16)
    monkeypatch.setattr(data, 'open_files', lambda: files)
    assert n_workers(4000)==workers
    out = capsys.readouterr().out
    assert ('ulimit -n' in out and out.count('\n')==1) if workers<8 else not out
