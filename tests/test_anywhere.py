"What other systems lack or refuse, made so here"
import subprocess, sys
from pathlib import Path
from resnet_course.kit.runs import measured_fit
from conftest import tiny_learner

without = '''
import importlib, os, pkgutil, signal, sys
import torchvision, pandas, typer, safetensors.torch, matplotlib.pyplot, filelock
import fastai.vision.all
for o in ('fcntl','pwd','grp','termios','tty','pty','resource'): sys.modules[o] = None
for o in ('SIGHUP','SIGUSR1','SIGUSR2','SIGALRM','SIGKILL','SIGPIPE'): delattr(signal, o)
for o in ('fork','getuid','geteuid','killpg','getpgid','setsid','mkfifo','sched_getaffinity','statvfs','O_NOFOLLOW','O_NONBLOCK'): delattr(os, o)
import resnet_course
for o in pkgutil.walk_packages(resnet_course.__path__, 'resnet_course.'): importlib.import_module(o.name)
from resnet_course.kit.stopping import Stops
with Stops(): print('works')
'''
def test_without_what_only_unix_has():
    p = subprocess.run([sys.executable,'-c',without], capture_output=True, text=True)
    assert p.returncode==0 and p.stdout.split()[-1:]==['works'], p.stderr

def test_a_lock_that_is_open_stays(drawn, tmp_path, monkeypatch):
    "Windows removes no open file: a run ends all the same"
    unlink = Path.unlink
    def refused(self, **kwargs):
        if self.name.endswith('.lock'): raise PermissionError(13, 'used by another process', str(self))
        return unlink(self, **kwargs)
    monkeypatch.setattr(Path, 'unlink', refused)
    assert measured_fit(tiny_learner(drawn), 1, 1e-2, tmp_path/'a.json', model='fcn', recipe='small', size=32, seed=42)['complete']
