"""`python -m docs` writes docs/cli.md from the commands' own help, the table of corpora in
docs/datasets.md from their TOMLs, and the tables of figures in docs/results.md and the README from
the files of results; tests/test_docs.py holds the pages to it.
"""

from __future__ import annotations

from pathlib import Path

import click

from docs import results

HEAD = """# Command line

Written from `mer --help` by `python -m docs`; do not edit by hand. Results go to stdout,
progress and notes to stderr.
Every option has an environment variable: `MER_<COMMAND>_<OPTION>`.

| exit | meaning |
|---|---|
| 0 | done |
| 1 | one line says why |
| 2 | usage |
| 3 | finished, but more clips failed than `--max-failures` (known-bad ones do not count) |
| 4 | the store at hand was made by another recipe |
| 5 | a store or shard is damaged |
| 130, 143 | interrupted or terminated; the same command goes on from there |

Mistakes of one command line that do not need each other are told together, a line each: words and
options first, then what goes together and what the named files are. What is within the files is
read after that, and its first fault ends the command.

Completion of commands, options, corpora, models, presets and files, in bash (in zsh `zsh_source`
and `~/.zshrc`; in fish `_MER_COMPLETE=fish_source mer > ~/.config/fish/completions/mer.fish`):

```sh
_MER_COMPLETE=bash_source mer > ~/.mer-complete.bash
echo 'source ~/.mer-complete.bash' >> ~/.bashrc
```
"""
# around the table of corpora in docs/datasets.md
BEGIN = "<!-- the table is written by `python -m docs` -->"
END = "<!-- end of the table -->"


def page() -> str:
    from mer.cli import main

    context = click.Context(
        main, info_name="mer", max_content_width=100, terminal_width=100, **main.context_settings
    )
    parts = [HEAD, f"## mer\n\n```\n{main.get_help(context)}\n```\n"]
    for name in main.list_commands(context):
        command = main.commands[name]
        with click.Context(
            command, parent=context, info_name=name, max_content_width=100, terminal_width=100
        ) as sub:
            parts.append(f"## mer {name}\n\n```\n{command.get_help(sub)}\n```\n")
            for inner in sorted(getattr(command, "commands", {})):
                with click.Context(
                    command.commands[inner],
                    parent=sub,
                    info_name=inner,
                    max_content_width=100,
                    terminal_width=100,
                ) as last:
                    parts.append(
                        f"### mer {name} "
                        f"{inner}\n\n```\n{command.commands[inner].get_help(last)}\n```\n"
                    )
    return "\n".join(parts)


def with_corpora(text: str) -> str:
    """The page on corpora with the table of all of them as it is now."""
    from mer.pipeline.datasets import overview, pages

    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{pages.table(overview())}\n\n{END}{after}"


if __name__ == "__main__":
    here = Path(__file__).parent
    (here / "cli.md").write_text(page())
    corpora = here / "datasets.md"
    corpora.write_text(with_corpora(corpora.read_text()))
    for measured in results.PAGES:
        measured.write_text(results.filled(measured.read_text()))
