"Name, version, requirements and commands are read from settings.ini."
import re, shutil
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup, find_packages
from setuptools.command.build_py import build_py

ini = ConfigParser(delimiters=['='])
ini.read('settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']

def readme():
    "README.md with its links to other files and pictures made absolute, since PyPI has only this one; code is left as it is"
    parts = re.split(r'(```.*?```|`[^`\n]+`)', Path('README.md').read_text(encoding='utf-8'), flags=re.S)
    at = f"{cfg['git_url']}/blob/{cfg['branch']}/"
    parts[::2] = [re.sub(r'\]\((?!\w+:|#)', f']({at}', o) for o in parts[::2]]
    return re.sub(r'(?<=src)(set)?="(images/[^"]+)"', rf'\1="{at}\2?raw=true"', ''.join(parts))

class WithLessons(build_py):
    "Puts the lessons, and the records that they show, into the package, for `resnet_course learn`"
    def run(self):
        super().run()
        if self.editable_mode: return   # they are beside it
        lessons = Path(self.build_lib)/cfg['lib_name']/'lessons'
        shutil.rmtree(lessons, ignore_errors=True)   # of an earlier build
        for o in ('nbs','results','images'):
            shutil.copytree(o, lessons/o, ignore=shutil.ignore_patterns('.*', '__pycache__', 'runs', '*.pt', '*.safetensors', 'curves.png'))
        shutil.copy('index.ipynb', lessons)

setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'],
    author=cfg['author'], author_email=cfg['author_email'], url=cfg['git_url'], license='Apache-2.0',
    long_description=readme(), long_description_content_type='text/markdown',
    packages=find_packages(include=[cfg['lib_name'] + '*']), include_package_data=True, zip_safe=False,
    cmdclass={'build_py': WithLessons},
    python_requires='>=' + cfg['min_python'],
    install_requires=cfg['requirements'].split(),
    extras_require={'stream': cfg['stream_requirements'].split(), 'dev': (cfg['dev_requirements']+' '+cfg['stream_requirements']).split()},
    entry_points={
        'console_scripts': cfg['console_scripts'].split(),
        'nbdev': [f"{cfg['lib_name']}={cfg['lib_path']}._modidx:d"],
    },
    classifiers=['Development Status :: 3 - Alpha', 'Intended Audience :: Education', 'Programming Language :: Python :: 3'],
)
