"""A page of prompts, pictures and answers, for people to look through: no script, no outside file."""

from collections.abc import Mapping
from html import escape

from recsys.report_html import page
from recsys.zeroshot.asking import Contest
from recsys.zeroshot.cases import Asked
from recsys.zeroshot.messages import Message
from recsys.zeroshot.modes import Judged, Reply
from recsys.zeroshot.prompts import labels
from recsys.zeroshot.shelf import Shelf

USERS = 12
_REPLIES = 4
_STYLE = """<style>
.case { border: 1px solid var(--line); border-radius: .5rem; padding: .5rem 1rem; margin: 1rem 0; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .8rem; background: #8881; padding: .6rem; }
.shelf { display: flex; flex-wrap: wrap; gap: .4rem; } figure { margin: 0; width: 6.5rem; font-size: .75rem; }
figure img { max-width: 100%; max-height: 9rem; display: block; } figure.truth { outline: 3px solid var(--mark); }
pre img { max-width: 8rem; vertical-align: middle; }
</style>"""
_SIDE = 112


def gallery(contests: Mapping[str, Contest], asked: Asked, shelf: Shelf, title: str) -> str:
    """The first users of every contest: history, the final ranking with the truth marked, and each question with its
    answer. Pictures are small JPEGs inside the page; every text is escaped."""
    body = [
        f"{_STYLE}<h1>{escape(title)}: prompts and answers</h1><p>The first {USERS} users of each variant, and up to "
        f"{_REPLIES} of the questions about each. What the user took is marked; no prompt tells it.</p>"
    ]
    for name, found in contests.items():
        body.append(f"<h2>{escape(name)}</h2>")
        body += [_case(one, asked, row, shelf) for row, one in enumerate(found.judged[:USERS])]
    return page(f"{title}: gallery", body)


def _case(one: Judged, asked: Asked, row: int, shelf: Shelf) -> str:
    truth = set(asked.queries.targets[row].tolist())
    user = asked.split.user_ids[int(asked.queries.queries.user_Q[row])]
    ranked = [one.case.candidates[place] for place in one.order]
    places = [str(place) for place, item in enumerate(ranked, start=1) if item in truth]
    history = "".join(_figure(shelf, item, "") for item in one.case.history[-6:])
    shown = "".join(
        _figure(shelf, item, str(place), item in truth) for place, item in enumerate(ranked[:10], start=1)
    )
    replies = "".join(_reply(reply) for reply in one.replies[:_REPLIES])
    return (
        f'<div class="case"><p><strong>user {escape(str(user))}</strong>, truth at place '
        f"{escape(', '.join(places) or 'none')} of {len(ranked)}; questions: {len(one.replies)}</p>"
        f"<small>history, newest last</small><div class=shelf>{history}</div>"
        f"<small>ranking, first ten</small><div class=shelf>{shown}</div>{replies}</div>"
    )


def _figure(shelf: Shelf, item: int, place: str, truth: bool = False) -> str:
    picture = shelf.picture(item, _SIDE)
    image = "" if picture is None else f'<img alt="" loading="lazy" src="{picture.data_uri}">'
    words = escape(f"{place}. {shelf.titles[item]}" if place else shelf.titles[item])
    return f"<figure{' class=truth' if truth else ''}>{image}<figcaption>{words}</figcaption></figure>"


def _reply(reply: Reply) -> str:
    prompt = "".join(f"[{escape(message.role)}]\n{_spoken(message)}\n" for message in reply.messages)
    answer = reply.answer
    if answer.scores is None:
        said = escape(answer.text)
    else:
        names = labels(len(answer.scores)) if len(answer.scores) == len(reply.places) else ["Yes", "No"]
        scored = sorted(zip(answer.scores, names, strict=True), reverse=True)
        said = escape("  ".join(f"{name} {score:.2f}" for score, name in scored))
    usage = answer.usage
    spent = f"{usage.prompt} + {usage.completion} tokens, {answer.seconds:.2f} s, {escape(answer.finish)}"
    return (
        f"<details><summary>round {reply.round + 1}: {spent}</summary><pre>{prompt}</pre>"
        f"<small>answer</small><pre>{said}</pre></details>"
    )


def _spoken(message: Message) -> str:
    return "".join(
        escape(part) if isinstance(part, str) else f'<img alt="picture" loading="lazy" src="{part.data_uri}">'
        for part in message.parts
    )
