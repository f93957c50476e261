"Make README.md from index.ipynb as it is saved: its texts, and the outputs of its cells; code that is marked `echo: false` is left out"
import re
from pathlib import Path
import nbformat
from nbconvert import MarkdownExporter

top = Path(__file__).parent.parent
nb = nbformat.read(top/'index.ipynb', as_version=4)
hidden,quiet = re.compile(r'#\s*\|\s*hide\b'), re.compile(r'#\s*\|\s*echo:\s*false')
nb.cells = [c for c in nb.cells if c.cell_type!='code' or not hidden.search(c.source)]
for c in nb.cells:
    if c.cell_type=='code' and quiet.search(c.source): c.metadata['transient'] = {'remove_source': True}
text,_ = MarkdownExporter(exclude_input_prompt=True).from_notebook_node(nb)
text = re.sub(r'<style>.*?</style>', '', text, flags=re.S)   # of a progress bar; GitHub would print it
note = '<!-- Made from index.ipynb by .ci/readme.py: edit the notebook, then `make readme`. -->\n\n'
(top/'README.md').write_text(note + re.sub(r'\n{3,}', '\n\n', text).strip() + '\n', encoding='utf-8')
