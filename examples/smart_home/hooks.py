"""The home's own verifier: could this home carry the calls out, and does the request speak of what they name?

It knows home.yaml and the request's words, and none of the sentence templates. Its reasons are written for a model to
mend its call by.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from runpy import run_path
from typing import Any

_FOLDER = Path(__file__).parent
_HOME_PARTS = run_path(str(_FOLDER / "home.py"))  # hooks.py is opened by its path, so it imports by path too
DOMAINS, GROUPS = _HOME_PARTS["DOMAINS"], _HOME_PARTS["GROUPS"]
HOME = _HOME_PARTS["Home"].read(_FOLDER)

FREE_TEXT = ("message", "item", "search_query", "conversation_command")
NUMBERS = ("brightness", "percentage", "position", "temperature", "volume_level", "step", "kelvin")
TIMES = ("hours", "minutes", "seconds", "start_hours", "start_minutes", "start_seconds")
SAID_FOR = {
    ("brightness", 100): ("max", "highest"),
    ("brightness", 1): ("min", "lowest"),
    ("kelvin", 1900): ("candle",),
    ("kelvin", 2700): ("warm",),
    ("kelvin", 4000): ("cold", "cool"),
    ("kelvin", 6500): ("day light", "daylight"),
}
SENSED = {"opening": ("open", "closed"), "occupancy": ("detected", "clear")}
SMALL = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
SMALL += ["thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
TENS = {"twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90}
# A request that a function serves has at least one of these beginnings of words; an argument's value likewise.
ASKED_BY = {
    "HassMediaNext": "next skip forward",
    "HassMediaPrevious": "previous last back replay again",
    "HassMediaPause": "pause stop halt hold",
    "HassMediaUnpause": "unpause resume continue",
    "HassMediaPlayerMute": "mute silence quiet",
    "HassMediaPlayerUnmute": "unmute",
    "HassMediaSearchAndPlay": "play watch listen put",
    "HassSetVolume": "volume loud turn",
    "HassSetVolumeRelative": "volume loud quiet turn",
    "HassListAddItem": "add put",
    "HassShoppingListAddItem": "add put buy need",
    "HassListRemoveItem": "remove delete take cross",
    "HassListCompleteItem": "check complete done tick mark",
    "HassShoppingListCompleteItem": "check complete delete remove done tick mark cross",
    "HassBroadcast": "broadcast announce tell say",
    "HassGetWeather": "weather",
    "HassGetCurrentDate": "date day",
    "HassGetCurrentTime": "time clock",
    "HassClimateGetTemperature": "temp hot cold warm cool",
    "HassClimateSetFanMode": "fan",
    "HassLawnMowerStartMowing": "mowing start begin mow$",
    "HassLawnMowerDock": "dock stop cancel return",
    "HassVacuumStart": "vacuum clean start run",
    "HassVacuumCleanArea": "vacuum clean start",
    "HassVacuumReturnToBase": "return base dock back",
    "HassCancelTimer": "cancel stop end",
    "HassCancelAllTimers": "all",
    "HassPauseTimer": "pause",
    "HassUnpauseTimer": "resume continue unpause",
    "HassIncreaseTimer": "add increase extend more",
    "HassDecreaseTimer": "decrease take remove off less reduce",
    "HassTimerStatus": "time how status left",
}
MEANT_BY = {
    ("state", "off"): "off out",
    ("state", "closed"): "closed shut",
    ("state", "closing"): "closing shutting",
    ("state", "detected"): "detected occupied triggered on",
    ("state", "clear"): "clear empty unoccupied",
    ("domain", "light"): "light lamp illuminat",
    ("domain", "lock"): "lock door window gate shutter garage",
    ("domain", "person"): "who anyone anybody someone somebody everyone everybody people person",
    ("device_class", "garage"): "garage",
    ("media_class", "track"): "track song",
    ("media_class", "tv_show"): "show",
    ("direction", "up"): "up increase raise louder",
    ("direction", "down"): "down decrease lower quieter",
}
OFF_WORDS = re.compile(r"\b(off|out|deactivate|close|shut|lower|unlock)\b")
ON_WORDS = re.compile(r"\b(on|activate|open|raise|lift|lock|light up|illuminate|press|push|run|start)\b")
ASKS = re.compile(r"^(is|are|which|who|where|whats|what's|what is|how|how's|hows|tell me|do you know) ")
QUESTION = re.compile(r"\b(is|are|which|who|where|wheres|whats|what|how|hows|tell me|do you know|any|sure)\b")
OPPOSED = {
    "HassLawnMowerStartMowing": re.compile(r"\b(stop|cancel|dock|return)\b"),
    "HassVacuumStart": re.compile(r"\b(return|dock)\b"),
    "HassStartTimer": re.compile(r"\b(pause|cancel|resume|continue|increase|decrease|add|remove|left)\b"),
}
COMMANDS = (
    "HassTurnOn",
    "HassTurnOff",
    "HassLightSet",
    "HassSetPosition",
    "HassFanSetSpeed",
    "HassClimateSetTemperature",
)
PLACE_FREE = ("HassBroadcast", "HassGetCurrentTime", "HassGetCurrentDate", "HassStartTimer")
HOME_WORDS = re.compile(
    r"\b(lights?|lamps?|fans?|blinds?|curtains?|awnings?|shades?|shutters?|gates?|windows?|doors?|thermostat|timers?|"
    r"temperature|volume|music|lock|list|vacuum|mow|mower|mute|pause|weather|play|"
    r"brightness|radio|tv|speaker|scene)\b"
)


def verify(request_text: str, calls: list[dict[str, Any]]) -> tuple[str, str]:
    """(pass | fail | abstain, reason). Arguments have passed their schema; numbers may come as text."""
    text = _plain(request_text)
    if not calls:
        if HOME_WORDS.search(text) or any(_said(name, text) for name in (*HOME.entities, *HOME.areas, *HOME.floors)):
            return "abstain", "no call, though the request speaks of something in the home"
        return "pass", ""
    for call in calls:
        arguments = dict(call["arguments"])
        problem = _cannot(call["name"], arguments) or _unsaid(call["name"], arguments, text)
        problem = problem or _unasked(call["name"], arguments, text)
        if problem:
            return "fail", f"{call['name']}: {problem}"
    problem = _left_out(calls, text)
    return ("fail", problem) if problem else ("pass", "")


def _cannot(function: str, arguments: Mapping[str, Any]) -> str:
    """Why the home cannot carry a call out."""
    name, area, floor = (arguments.get(key) for key in ("name", "area", "floor"))
    kind = arguments.get("device_class")
    if name is not None and function in DOMAINS:
        return _wrong_device(function, str(name), arguments)
    if area is not None and area not in HOME.areas:
        return f"there is no area {area!r}; areas: {', '.join(HOME.areas)}"
    if floor is not None and floor not in HOME.floors:
        return f"there is no floor {floor!r}; floors: {', '.join(HOME.floors)}"
    if function in ("HassTurnOn", "HassTurnOff") and not (arguments.get("domain") or kind):
        return "say what: a name, or domain light or fan, or a device_class"
    domain = "cover" if kind else arguments.get("domain") or GROUPS.get(function)
    if domain in (None, "person"):
        return _incomplete(function, arguments)
    if not HOME.those(domain, area, floor, kind):
        where = area or floor or "the home"
        return f"there is no {kind or domain} in {where}; {_offer(domain)}"
    return _incomplete(function, arguments)


def _wrong_device(function: str, name: str, arguments: Mapping[str, Any]) -> str:
    device = HOME.entities.get(name)
    if device is None:
        return f"there is no device {name!r}; {_offer(*DOMAINS[function])}"
    if device["domain"] not in DOMAINS[function]:
        return f"{name!r} is a {device['domain']}, which this function cannot do; {_offer(*DOMAINS[function])}"
    area, floor = arguments.get("area"), arguments.get("floor")
    vacuum = device["domain"] == "vacuum"  # it goes wherever it is sent
    if area is not None and not vacuum and device.get("area") not in (area, None):
        return f"{name!r} is in the {device['area']}, not in the {area}"
    own = HOME.floor_of(device.get("area"))
    if floor is not None and not vacuum and own not in (floor, None):
        return f"{name!r} is on the {own}, not on the {floor}"
    states = SENSED.get(device.get("states"))
    if states and arguments.get("state", states[0]) not in states:
        return f"{name!r} is never {arguments['state']!r}, but {' or '.join(states)}"
    if "color" in arguments and not device.get("colour"):
        return f"{name!r} has one colour; lights with colours: {', '.join(_with('colour'))}"
    if "kelvin" in arguments and not device.get("white"):
        return f"{name!r} has one colour temperature; lights with several: {', '.join(_with('white'))}"
    return _incomplete(function, arguments)


def _incomplete(function: str, arguments: Mapping[str, Any]) -> str:
    """What a call lacks that the schema cannot ask for."""
    if function == "HassLightSet" and len({"brightness", "color", "kelvin"} & set(arguments)) != 1:
        return "set one of brightness, color, kelvin"
    timed = function in ("HassStartTimer", "HassIncreaseTimer", "HassDecreaseTimer")
    if timed and not {"hours", "minutes", "seconds"} & set(arguments):
        return "say how long: hours, minutes or seconds"
    if function == "HassGetState" and not {"name", "domain", "device_class"} & set(arguments):
        return "say of what: a name, a domain or a device_class"
    return ""


def _unsaid(function: str, arguments: Mapping[str, Any], text: str) -> str:
    """An argument whose value the request cannot have meant, since it is not said by any of its names."""
    named = function in DOMAINS
    for key in ("name", "area", "floor"):
        value = arguments.get(key)
        if value is not None and (key != "name" or named) and not _said(str(value), text):
            return f"the request does not speak of {value!r}"
    for key in FREE_TEXT + (() if named else ("name",)):
        value = arguments.get(key)
        if value is not None and _plain(str(value)) not in text:
            return f"{key} must be the request's own words; {value!r} is not in it"
    said = set(_numbers(text))
    for key in (*NUMBERS, *TIMES):
        if key in arguments:
            number = float(arguments[key])
            half = number == 30 and key in TIMES and re.search(r"\bhalf\b|1/2", text)
            if number not in said and not half and not any(w in text for w in SAID_FOR.get((key, number), ())):
                return f"{key}: the request does not say {arguments[key]}"
    colour = arguments.get("color")
    return f"the request does not say {colour!r}" if colour and colour not in text else ""


def _unasked(function: str, arguments: Mapping[str, Any], text: str) -> str:
    """What speaks against the function itself: none of its words is said, or those of its opposite are."""
    for key, value in arguments.items():
        literal = str(value) if key in ("state", "domain", "device_class", "fan_mode", "media_class") else ""
        words = MEANT_BY.get((key, value), literal).split()
        if words and not _begins(words, text):
            return f"{key}: nothing in the request means {value!r}"
    if function in ASKED_BY and not _begins(ASKED_BY[function].split(), text):
        return "the request does not ask for this"
    if function.endswith(("Timer", "Timers", "TimerStatus")) and "conversation_command" not in arguments:
        if "timer" not in text:
            return "the request does not speak of a timer"
    elif function != "HassBroadcast" and "timer" in text:
        return "the request speaks of a timer"
    if function == "HassTurnOn" and OFF_WORDS.search(text) and not ON_WORDS.search(text):
        return "the request asks for the opposite, HassTurnOff"
    if function == "HassTurnOff" and not OFF_WORDS.search(text):
        return "the request does not ask to turn off, close or unlock anything"
    against = OPPOSED.get(function)
    if against and against.search(text) and "conversation_command" not in arguments:
        return "the request asks for something else"
    if function == "HassGetState" and not QUESTION.search(text):
        return "the request asks no question"
    if function in COMMANDS and ASKS.search(text):
        return "the request asks a question and wants nothing changed"
    return ""


def _begins(words: list[str], text: str) -> bool:
    """Whether a word of the text begins with one of these; a $ ends the word."""
    return any(re.search(rf"\b{word.replace('$', chr(92) + 'b')}", text) for word in words)


def _left_out(calls: list[dict[str, Any]], text: str) -> str:
    """A place or a number of the request that no call carries."""
    for call in calls:
        for key in FREE_TEXT + (() if call["name"] in DOMAINS else ("name",)):
            text = text.replace(_plain(str(call["arguments"].get(key, ""))) or "\0", " ")
    values = [value for call in calls for value in call["arguments"].values()]
    kinds = {kind for call in calls for kind in DOMAINS.get(call["name"], ())}
    for name in HOME.names(tuple(kinds)):
        if name not in values and any(re.search(rf"\b{re.escape(word)}\b", text) for word in HOME.words(name)):
            return f"the request names {name!r}, and the call does not"
    for name in values:
        for word in HOME.words(name) if isinstance(name, str) and name in HOME.entities else ():
            text = re.sub(rf"\b{re.escape(word)}\b", " ", text)
    for place in (*HOME.areas, *HOME.floors):
        if _said(place, text) and place not in values and not any(call["name"] in PLACE_FREE for call in calls):
            return f"the request speaks of {place!r}, and the call does not"
    carried = {float(value) for value in values if isinstance(value, int | float) or _is_number(value)}
    for number in _numbers(text):
        if number not in carried:
            return f"the request says {number:g}, and the call does not"
    return ""


def _offer(*domains: str) -> str:
    names = HOME.names(domains)
    return f"{' or '.join(domains)}: {', '.join(names)}" if names else f"the home has no {' or '.join(domains)}"


def _with(ability: str) -> list[str]:
    return [name for name, device in HOME.entities.items() if device.get(ability)]


def _plain(text: str) -> str:
    return " ".join(re.sub(r"[^\w\s%'/.-]", " ", text.casefold()).split()).rstrip(".")


def _said(name: str, text: str) -> bool:
    """Whether the request has all of a name, by any of its words."""
    return any(re.search(rf"\b{re.escape(word)}\b", text) for word in HOME.words(name))


def _is_number(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"\d+(\.\d+)?", value) is not None


def _numbers(text: str) -> Iterator[float]:
    """Numbers of a text, in digits or in words up to a hundred."""
    text = text.replace("1/2", "half")
    for digits in re.findall(r"\d+(?:\.\d+)?", text):
        yield float(digits)
    words = re.findall(r"[a-z]+", text)
    place = 0
    while place < len(words):
        word, after = words[place], words[place + 1] if place + 1 < len(words) else ""
        if word in TENS:
            more = SMALL.index(after) if after in SMALL[1:10] else 0
            place += bool(more)
            yield float(TENS[word] + more)
        elif word in SMALL:
            place += after == "hundred"
            yield float(100 if after == "hundred" else SMALL.index(word))
        place += 1
