"""Requests that no function of this home serves: the right answer is no call.

Each line is a pattern of its own; `{slot}` is filled from SLOTS. Families: talk, knowledge, other services, unknown
devices, unknown rooms, half sentences.
"""

from __future__ import annotations

import random
import re

PATTERNS = """
how are you today
good to see you again
tell me a joke about the {animal}
do you ever get tired of listening
what do you think of {topic}
i am feeling a bit {mood} this evening
thank you, that was kind of you
sing me a song about a {animal}
who taught you to speak
are you smarter than {person}
i love the smell of {food}
guess what happened to me at {shop}
you are a great help
let's talk about {topic}
what is your favourite {thing}
how far is it to {city}
who won the match between {city} and {other_city}
what is the capital of {country}
how many people live in {city}
who was {person}
how do you spell {word}
what does {word} mean
translate {word} into {language}
what is the square root of {number}
how many calories are in {food}
how long does it take to cook {food}
when was {person} born
give me a recipe with {food}
is {food} healthy
what is the news from {country}
why is the sky blue
how old is {person}
book me a flight to {city}
order {food} from {shop}
call {contact}
send {contact} a message that i am late
send an email to {contact}
what is on my calendar for {day}
put a meeting with {contact} in my calendar on {day}
remind {contact} of the meeting on {day}
find me a hotel in {city}
reserve a table for {number} at {shop}
how is the traffic on the way to {city}
get me a taxi to {city}
what is the share price of {company}
transfer {number} euros to {contact}
buy new shoes at {shop}
read me my emails from {contact}
navigate to {city}
take a photo of the {animal}
record a video of {contact}
show me pictures of {city}
where did i park my car
turn on the {unknown_device}
switch off the {unknown_device} please
set the {unknown_device} to {number}
is the {unknown_device} on
start the {unknown_device}
open the {unknown_device}
could you check the {unknown_device} for me
how warm is the {unknown_device}
make the {unknown_device} run faster
close the {unknown_device} before it rains
turn on the lights in the {unknown_room}
turn off every lamp in the {unknown_room}
set the temperature in the {unknown_room} to {number}
what is the temperature in the {unknown_room}
close the blinds in the {unknown_room}
vacuum the {unknown_room}
turn up the volume in the {unknown_room}
dim the {unknown_room} lights to {number} percent
set the {unknown_room} fan to {number} percent
lock the {unknown_room} door
play some music in the {unknown_room}
turn on the
set it to
i was going to say something
could you maybe
the thing with the {thing}
not that one, the other one
hm let me think
what i wanted was
no no no
just testing the microphone
did you hear that
ignore what i said to {contact}
it is too {feeling} for my taste
somebody ate my {food}
my {animal} is asleep on the sofa
do we need an umbrella in {city} on {day}
which bus goes to {city}
how tall is {person}
compose a poem for {contact}
flip a coin
roll a dice
pick a number between one and ten
tell {contact} i said hello
wish {contact} a happy birthday
what year did {person} die
what rhymes with {word}
when does {shop} open on {day}
is {shop} still open
cancel my subscription to {company}
pay the bill from {company}
charge my phone
feed the {animal}
walk the {animal} at {day_time}
help me with my {subject} homework
explain {topic} to me
""".strip().split("\n")

SLOTS: dict[str, tuple[str, ...]] = {
    "animal": ("dog", "cat", "hamster", "rabbit", "parrot", "goldfish", "tortoise"),
    "topic": ("football", "the moon", "chess", "politics", "black holes", "the stock market", "poetry"),
    "mood": ("tired", "happy", "sad", "bored", "hungry"),
    "person": ("marie curie", "mozart", "albert einstein", "cleopatra", "ada lovelace", "napoleon"),
    "food": ("risotto", "pancakes", "sushi", "lentil soup", "lasagne", "curry", "tomatoes"),
    "shop": ("the bakery", "the supermarket", "the bookshop", "the pharmacy", "the corner cafe", "the cinema"),
    "thing": ("colour", "book", "film", "season", "dish", "sport"),
    "city": ("paris", "oslo", "berlin", "madrid", "tokyo", "vienna", "lisbon"),
    "other_city": ("rome", "prague", "dublin", "athens", "boston"),
    "country": ("peru", "finland", "japan", "kenya", "canada", "portugal"),
    "word": ("serendipity", "butterfly", "gratitude", "rhythm", "archipelago"),
    "language": ("french", "spanish", "polish", "italian"),
    "number": ("12", "19", "40", "21", "seventy", "64", "eight"),
    "contact": ("my sister", "doctor miller", "peter", "my boss", "aunt lucy", "the plumber"),
    "day": ("monday", "friday", "next tuesday", "saturday", "sunday morning"),
    "day_time": ("noon", "six", "sunset"),
    "company": ("the water company", "the phone company", "the newspaper", "the gym"),
    "subject": ("maths", "physics", "history", "biology"),
    "feeling": ("sweet", "salty", "loud", "late"),
    "unknown_device": (
        "toaster", "microwave", "sauna", "dehumidifier", "aquarium pump", "heated blanket", "treadmill", "ice maker",
        "electric fireplace", "pool cover", "projector", "rice cooker", "air purifier", "jacuzzi", "telescope",
    ),
    "unknown_room": (
        "attic", "library", "guest room", "conservatory", "wine cellar", "ballroom", "gym room", "sunroom", "playroom",
        "pantry", "workshop", "penthouse",
    ),
}  # fmt: skip


def fill(pattern: str, rng: random.Random) -> str:
    return re.sub(r"\{(\w+)\}", lambda slot: rng.choice(SLOTS[slot[1]]), pattern)
