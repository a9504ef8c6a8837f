"""A run's template as the ``chat_template`` of its saved tokenizer, which any library of chat templates can render.

A run renders messages of plain text, says its system message where a conversation has none, and takes for a prompt what
stands before an answer (``data/render/template.py``). The template that is saved does the same by itself: it wraps the
run's own, makes one text of a message's parts, and cuts a rendered stand-in answer off instead of trusting what a
template writes for ``add_generation_prompt``, which training never saw.
"""

from __future__ import annotations

import json

from beni.data.render.template import OPEN, STAND_IN, TODAY
from beni.data.render.tokens import IMAGE

WRAPPED = """{#- Written by beni: the template of the run, its system message, and the prompt as training had it. -#}
%(today)s{%%- macro conversation(messages, add_generation_prompt) %%}%(jinja)s{%% endmacro -%%}
{%%- set told = namespace(turns=[], system=false, text='') -%%}
{%%- for message in messages -%%}
{%%- if message.role == 'system' -%%}{%%- set told.system = true -%%}{%%- endif -%%}
{%%- if message.content is string -%%}
{%%- set told.text = message.content -%%}
{%%- else -%%}
{%%- set told.text = '' -%%}
{%%- for part in message.content -%%}
{%%- if part.type == 'image' -%%}{%%- set told.text = told.text + %(image)s -%%}
{%%- elif part.type == 'text' -%%}{%%- set told.text = told.text + part.text -%%}
{%%- else -%%}{{- raise_exception('a part of a message is text or image, not ' ~ part.type) -}}
{%%- endif -%%}
{%%- endfor -%%}
{%%- endif -%%}
{%%- set told.turns = told.turns + [dict(message, content=told.text.strip())] -%%}
{%%- endfor -%%}
{%%- set system = %(system)s -%%}
{%%- if system and not told.system -%%}
{%%- set told.turns = [{'role': 'system', 'content': system}] + told.turns -%%}
{%%- endif -%%}
{%%- if add_generation_prompt -%%}
{%%- set answer = {'role': 'assistant', 'content': %(stand_in)s} -%%}
{{- conversation(told.turns + [answer], false).split(%(cut)s)[0]%(end)s -}}
{%%- else -%%}
{{- conversation(told.turns, false) -}}
{%%- endif -%%}
"""


STRIPPED = ".rstrip(' ')"
"""The end of a prompt for processors that tokenise it as it stands: spaces in front of an answer are learned as part of
its first word.
"""


def chat_template(jinja: str, system: str | None, end: str = "") -> str:
    """The template of a run in one that needs nothing beside it.

    Args:
        jinja: the run's template; its messages have a role and a text.
        system: the run's system message; None or empty for none.
        end: Jinja that is applied to the text of a prompt; ``BeniProcessor`` knows of the spaces at its end.
    """
    return WRAPPED % {
        "today": TODAY if "strftime_now" in jinja else "",
        "jinja": jinja.removesuffix("\n"),  # Jinja drops the last line break of a template, which this no longer is
        "image": _quoted(IMAGE),
        "system": _quoted(system or ""),
        "stand_in": _quoted(OPEN + STAND_IN),
        "cut": _quoted(OPEN),
        "end": end,
    }


def _quoted(text: str) -> str:
    """A string of Jinja, which has the escapes of JSON's; llama.cpp's Jinja has none for characters beyond ASCII."""
    return json.dumps(text, ensure_ascii=False)
