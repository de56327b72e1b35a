"""Routes of several targets: every form, what each setting becomes, which timeouts hold where, and what is refused."""

import pytest

from relay.config.tree import Affinity, AffinityKind, FallbackCause, Heartbeat, Hedge, Route, Secret, Strategy, Target, Timeouts
from tests.config.loading import ROUTE, Loading

UPSTREAMS = "upstreams: {one: {base_url: 'http://127.0.0.1:9001/v1'}, two: {base_url: 'http://127.0.0.1:9002/v1'}}\n"


def route(loading: Loading, written: str, name: str = "fast") -> Route:
    return loading.load(f"{UPSTREAMS}routes: {{'{name}': {written}}}").routes[name]


def names(targets: tuple[Target, ...]) -> list[str]:
    return [f"{target.upstream.name}/{target.model}" for target in targets]


@pytest.mark.parametrize(
    ("written", "targets", "fallbacks"),
    [
        ("one/a", ["one/a"], []),
        ("[one/a, two/b, one/c]", ["one/a", "two/b", "one/c"], []),
        ("[one/a, {to: two/b}]", ["one/a", "two/b"], []),
        ("{to: one/a}", ["one/a"], []),
        ("{to: [one/a, two/b]}", ["one/a", "two/b"], []),
        ("{to: one/a, fallback: two/b}", ["one/a"], ["two/b"]),
        ("{balance: [{to: one/a}, two/b], fallback: [one/c, {to: two/d}]}", ["one/a", "two/b"], ["one/c", "two/d"]),
    ],
)
def test_form_of_a_route(loading: Loading, written: str, targets: list[str], fallbacks: list[str]) -> None:
    found = route(loading, written)
    assert (names(found.targets), names(found.fallbacks)) == (targets, fallbacks)
    assert names(found.all_targets) == targets + fallbacks
    assert found.strategy is (Strategy.WEIGHTED if "balance" in written else Strategy.ORDERED)


def test_route_without_more_settings_has_no_affinity_and_no_fallbacks(loading: Loading) -> None:
    found = route(loading, "[one/a, two/b]")
    assert (found.affinity, found.fallbacks) == (Affinity(), ())


def test_weights_and_strategies(loading: Loading) -> None:
    assert [each.weight for each in route(loading, "{balance: [{to: one/a, weight: 3}, two/b]}").targets] == [3, 1]
    for word in ("weighted", "least_busy", "fastest"):
        assert route(loading, f"{{balance: [one/a, two/b], strategy: {word}}}").strategy is Strategy(word)
    assert route(loading, "{to: [one/a, two/b], strategy: ordered}").strategy is Strategy.ORDERED


@pytest.mark.parametrize(
    ("written", "affinity"),
    [
        ("none", Affinity()),
        ("prefix", Affinity(kind=AffinityKind.PREFIX)),
        ("user", Affinity(kind=AffinityKind.USER)),
        ("'header:X-Session-Id'", Affinity(kind=AffinityKind.HEADER, header=b"x-session-id")),
    ],
)
def test_affinity(loading: Loading, written: str, affinity: Affinity) -> None:
    found = route(loading, f"{{balance: [one/a, two/b], affinity: {written}}}").affinity
    assert found == affinity
    assert str(found) == written.strip("'").lower()


def test_fallback_causes_and_retries(loading: Loading) -> None:
    found = route(loading, "{to: [one/a, two/b], fallback_on: [context_length], retries: 0}")
    assert (found.fallback_on, found.retries) == ({FallbackCause.CONTEXT_LENGTH}, 0)
    assert route(loading, "one/a").retries == 2


def test_upstream_with_several_credentials_begins_with_the_first(loading: Loading) -> None:
    config = loading.load("upstreams: {openai: {api_keys: [k1, '${K}']}, xai: {api_key: k3}}\nroutes: {a: [openai/x, xai/y]}", {"K": "k2"})
    openai, xai = config.upstreams["openai"], config.upstreams["xai"]
    assert openai.api_key == Secret("k1")
    assert openai.credentials == openai.api_keys == (Secret("k1"), Secret("k2"))
    assert (xai.credentials, xai.api_keys) == ((Secret("k3"),), ())
    assert config.warnings == ()


def test_hedge_and_heartbeat(loading: Loading) -> None:
    found = route(loading, "{to: [one/a, two/b], hedge: {after: 800ms, at_most: 2.5%}, heartbeat: {after: 10s, every: 1m}}")
    assert found.hedge == Hedge(after=0.8, at_most=0.025)
    assert found.heartbeat == Heartbeat(after=10.0, every=60.0)
    assert (route(loading, "[one/a, two/b]").hedge, route(loading, "[one/a, two/b]").heartbeat) == (None, None)


@pytest.mark.parametrize("written", ["{}", "{after: p95}", "{after: p95, at_most: 5%}", ""])
def test_hedge_learns_when_nothing_else_is_said(loading: Loading, written: str) -> None:
    assert route(loading, f"{{to: [one/a, two/b], hedge: {written}}}").hedge == Hedge(after=None, at_most=0.05)


def test_wildcard_route_of_several_targets(loading: Loading) -> None:
    assert names(route(loading, "[one/q*, two/*, one/fixed]", "q*").targets) == ["one/q*", "two/*", "one/fixed"]


def test_narrower_timeouts_override_wider_ones(loading: Loading) -> None:
    config = loading.load(
        """
        timeouts: {connect: 1s, first_token: 100s}
        upstreams:
          one: {base_url: "http://127.0.0.1:9001/v1", timeouts: {first_token: 200s, between_tokens: 20s}}
          two: {base_url: "http://127.0.0.1:9002/v1"}
        routes:
          fast:
            to: [one/a, {to: one/b, timeouts: {between_tokens: 40s}}, two/c]
            timeouts: {between_tokens: 30s}
        """
    )
    first, second, third = (each.timeouts for each in config.routes["fast"].targets)
    assert first == Timeouts(connect=1.0, first_token=200.0, between_tokens=30.0)
    assert second == Timeouts(connect=1.0, first_token=200.0, between_tokens=40.0)
    assert third == Timeouts(connect=1.0, first_token=100.0, between_tokens=30.0)
    assert config.routes["fast"].timeouts == first


@pytest.mark.parametrize(
    ("everywhere", "upstream", "of_route", "of_target", "expected"),
    [
        ("90s", "", "", "", (90.0, False)),
        ("auto", "", "", "", (120.0, True)),
        ("90s", "auto", "", "", (90.0, True)),
        ("90s", "", "auto", "", (90.0, True)),
        ("90s", "", "", "auto", (90.0, True)),
        ("auto", "60s", "", "", (60.0, False)),
        ("auto", "60s", "auto", "", (60.0, True)),
        ("auto", "", "", "30s", (30.0, False)),
    ],
)
def test_auto_keeps_the_number_of_the_next_wider_setting(
    loading: Loading, everywhere: str, upstream: str, of_route: str, of_target: str, expected: tuple[float, bool]
) -> None:
    def timeouts(first_token: str) -> str:
        return f"timeouts: {{first_token: {first_token}}}" if first_token else "timeouts: {}"

    config = loading.load(
        f"{timeouts(everywhere)}\nupstreams: {{one: {{base_url: 'http://127.0.0.1:9001/v1', {timeouts(upstream)}}}}}\n"
        f"routes: {{fast: {{to: [{{to: one/a, {timeouts(of_target)}}}], {timeouts(of_route)}}}}}"
    )
    found = config.routes["fast"].targets[0].timeouts
    assert found is not None
    assert (found.first_token, found.first_token_auto) == expected


def test_exchange_has_the_longest_total_of_its_upstreams_unless_the_route_says(loading: Loading) -> None:
    text = """
        upstreams:
          one: {base_url: "http://127.0.0.1:9001/v1", timeouts: {total: 10m, write: 5s}}
          two: {base_url: "http://127.0.0.1:9002/v1", timeouts: {total: 2h}}
        routes:
          longest: [one/a, two/b]
          said: {to: [one/a, two/b], timeouts: {total: 5m}}
        """
    routes = loading.load(text).routes
    for name, total, write in (("longest", 7200.0, 30.0), ("said", 300.0, 30.0)):
        bounds = [routes[name].timeouts, *(each.timeouts for each in routes[name].targets)]
        assert [(each.total, each.write) for each in bounds if each] == [(total, write)] * 3


@pytest.mark.parametrize(
    ("name", "url", "vendor"),
    [
        ("dashscope", "http://127.0.0.1:9/v1", "dashscope"),
        ("zhipu", "https://open.bigmodel.cn/api/paas/v4", "zhipu"),
        ("qwen", "https://dashscope-intl.aliyuncs.com/compatible-mode/v1", "dashscope"),
        ("second", "https://api.deepseek.com/v1", "deepseek"),
        ("work", "https://mine.openai.azure.com/openai/v1", "azure"),
        ("evil", "https://aliyuncs.com.example/v1", "openai"),
        ("mine", "http://127.0.0.1:11434/v1", "openai"),
    ],
)
def test_vendor_is_told_by_name_then_by_address(loading: Loading, name: str, url: str, vendor: str) -> None:
    config = loading.load(f"upstreams: {{{name}: {{base_url: '{url}', api_key: k}}}}\nroutes: {{a: {name}/x}}")
    assert config.upstreams[name].vendor == vendor


MISTAKES = [
    # the route, path below it, part of the message
    ("{}", "", "leads nowhere: add `to"),
    ("[]", ".to", "is empty"),
    ("[one]", "[0]", "expected one target written as upstream/model"),
    ("[one/a, [two/b]]", "[1]", "expected one target written as upstream/model"),
    ("[one/a, {weight: 2}]", "[1].to", "is missing"),
    ("[one/a, {tu: two/b}]", "[1].tu", "unknown setting"),
    ("[one/a, oen/b]", "[1]", 'no upstream named "oen"'),
    ("[one/a, {to: oen/b}]", "[1].to", 'no upstream named "oen"'),
    ("[one/a, one/*]", "[1]", "only a route whose name ends in *"),
    ("[one/a, two/b, one/a]", "[2]", 'is already a target of "fast"'),
    ("{to: one/a, fallback: [two/b, one/a]}", ".fallback[1]", 'is already a target of "fast"'),
    ("{balance: [{to: one/a}, {to: one/a}]}", ".balance[1].to", 'is already a target of "fast"'),
    ("{to: one/a, fallback: tow/b}", ".fallback", 'no upstream named "tow"'),
    ("{fallback: [one/a]}", "", "leads nowhere"),
    ("{blance: [one/a]}", ".blance", 'unknown setting; did you mean "balance"?'),
    ("{to: one/a, balance: [two/b]}", ".balance", "stands beside `to`"),
    ("{balance: []}", ".balance", "is empty"),
    ("{balance: one/a}", ".balance", "expected a list"),
    ("{to: {to: one/a}}", ".to", "expected a list"),
    ("{to: one/a, fallback: []}", ".fallback", "is empty"),
    ("{balance: [{to: one/a, wieght: 2}]}", ".balance[0].wieght", 'did you mean "weight"?'),
    ("{balance: [{to: one/a, weight: 0}, two/b]}", ".balance[0].weight", "expected a weight from 1 to 1000"),
    ("{balance: [{to: one/a, weight: 1.5}, two/b]}", ".balance[0].weight", "expected a weight from 1 to 1000"),
    ("{balance: [{to: one/a, weight: -1}, two/b]}", ".balance[0].weight", "expected a weight from 1 to 1000"),
    ("[{to: one/a, weight: 2}, two/b]", "[0].weight", "has no effect: these targets are tried in order"),
    ("{to: [{to: one/a, weight: 2}]}", ".to[0].weight", "has no effect: these targets are tried in order"),
    ("{to: one/a, fallback: [{to: two/b, weight: 2}]}", ".fallback[0].weight", "has no effect: these targets are tried in order"),
    ("{balance: [{to: one/a, weight: 2}, two/b], strategy: fastest}", ".balance[0].weight", "has no effect: the fastest"),
    ("{balance: [one/a, two/b], strategy: fast}", ".strategy", 'did you mean "fastest"?'),
    ("{balance: [one/a, two/b], strategy: ordered}", ".strategy", "tried in order stand in `to`"),
    ("{to: [one/a, two/b], strategy: fastest}", ".strategy", "chooses among the targets of `balance`"),
    ("{to: [one/a, two/b], affinity: user}", ".affinity", "has no effect on targets that are tried in order"),
    ("{balance: [one/a], affinity: user}", ".affinity", "has no effect: `balance` has one target"),
    ("{balance: [one/a, two/b], affinity: header}", ".affinity", "expected one of none, prefix, user, header:NAME"),
    ("{balance: [one/a, two/b], affinity: 'header:a b'}", ".affinity", "expected one of none, prefix, user, header:NAME"),
    ("{balance: [one/a, two/b], affinity: prefx}", ".affinity", 'did you mean "prefix"?'),
    ("{to: [one/a, two/b], fallback_on: [context_lenght]}", ".fallback_on[0]", 'did you mean "context_length"?'),
    ("{to: [one/a, two/b], fallback_on: context_length}", ".fallback_on", "expected a list"),
    ("{to: one/a, fallback_on: [context_length]}", ".fallback_on", "has no effect: the route has no second target"),
    ("{to: one/a, retries: 3}", ".retries", "expected 0, 1 or 2"),
    ("{to: one/a, retries: yes}", ".retries", "expected 0, 1 or 2"),
    ("{to: one/a, hedge: {}}", ".hedge", "has no effect: the route has no second target"),
    ("{to: [one/a, two/b], hedge: {at_most: 51%}}", ".hedge.at_most", "expected a share such as 5%, at most 50%"),
    ("{to: [one/a, two/b], hedge: {at_most: 0%}}", ".hedge.at_most", "more than 0%"),
    ("{to: [one/a, two/b], hedge: {at_most: 0.05}}", ".hedge.at_most", "expected a share such as 5%"),
    ("{to: [one/a, two/b], hedge: {after: p99}}", ".hedge.after", "or p95"),
    ("{to: [one/a, two/b], hedge: {after: 3m}}", ".hedge.after", "no backup would ever start"),
    ("{to: [one/a, two/b], hedge: 5%}", ".hedge", "expected settings"),
    ("{to: one/a, heartbeat: {after: 0s}}", ".heartbeat.after", "more than zero"),
    ("{to: one/a, heartbeat: {evry: 3s}}", ".heartbeat.evry", 'did you mean "every"?'),
    ("{to: one/a, timeouts: {first_token: automatic}}", ".timeouts.first_token", "or auto"),
    ("{to: one/a, timeouts: {connect: auto}}", ".timeouts.connect", "expected a duration"),
    ("{to: [{to: one/a, timeouts: {total: 1h}}]}", ".to[0].timeouts.total", "unknown setting"),
]


@pytest.mark.parametrize(("written", "path", "message"), MISTAKES, ids=range(len(MISTAKES)))
def test_mistake_of_a_route_is_named_with_its_line(loading: Loading, written: str, path: str, message: str) -> None:
    problem = loading.problem(f"{UPSTREAMS}routes:\n  other: one/z\n  fast: {written}\n")
    expected = "routes.fast" + ("" if written == "[]" else path)
    assert (problem.line, problem.path) in ((4, expected), (4, f"routes.fast{path}"))
    assert message in problem.message


def test_every_mistake_of_a_route_has_its_own_line(loading: Loading) -> None:
    problems = loading.problems(
        f"""\
        {UPSTREAMS.strip()}
        routes:
          fast:
            balance:
              - {{to: one/a, weight: none}}
              - tow/b
              - {{to: two/b, timeouts: {{conect: 1s}}}}
            fallback:
              - three/c
              - {{to: one/z, weight: 0}}
        """
    )
    assert [(problem.line, problem.path) for problem in problems] == [
        (5, "routes.fast.balance[0].weight"),
        (7, "routes.fast.balance[2].timeouts.conect"),
        (10, "routes.fast.fallback[1].weight"),
    ]


def test_every_unknown_upstream_of_a_route_is_named(loading: Loading) -> None:
    problems = loading.problems(
        f"{UPSTREAMS}routes:\n  fast:\n    balance:\n    - tow/b\n    - one/a\n    fallback:\n    - {{to: three/c}}\n"
    )
    assert [(problem.line, problem.path) for problem in problems] == [(5, "routes.fast.balance[0]"), (8, "routes.fast.fallback[0].to")]


def test_excerpt_shows_the_target_that_is_wrong(loading: Loading) -> None:
    problem = loading.problem(f"{UPSTREAMS}routes: {{fast: [one/a, oen/b]}}")
    assert problem.excerpt == "    2 | routes: {fast: [one/a, oen/b]}\n      |                        ^"


def test_upstream_that_is_only_a_fallback_is_used(loading: Loading) -> None:
    assert loading.load(f"{UPSTREAMS}routes: {{fast: {{to: one/a, fallback: [two/b]}}}}").warnings == ()


UPSTREAM_MISTAKES = [
    ("api_key: k, api_key_file: key", ".api_key_file", "stands beside api_key"),
    ("api_key_file: key, api_keys: [k]", ".api_key_file", "stands beside api_keys"),
    ("api_keys: []", ".api_keys", "is empty"),
    ("api_keys: [k, passthrough]", ".api_keys[1]", "passthrough is for `api_key` alone"),
    ("api_keys: [k, l, k]", ".api_keys[2]", "is the same credential as one above"),
    ("vendor: opnai", ".vendor", 'did you mean "openai"?'),
]


@pytest.mark.parametrize(("written", "path", "message"), UPSTREAM_MISTAKES, ids=range(len(UPSTREAM_MISTAKES)))
def test_mistake_of_an_upstream_is_named_with_its_line(loading: Loading, written: str, path: str, message: str) -> None:
    (loading.folder / "key").write_text("k")
    problem = loading.problem(f"upstreams:\n  mine: {{base_url: 'http://127.0.0.1:9/v1', {written}}}\n{ROUTE}")
    assert (problem.line, problem.path) == (2, f"upstreams.mine{path}")
    assert message in problem.message
