"""Openers from which the target writes the user turns of its own training conversations.

Nothing here comes from a data set: lists of names, things and beginnings that the target
completes by itself ("Magpie" style, arXiv:2406.08464).
"""

from __future__ import annotations

import random

_NAMES = """
Tom Anna Maria Liam Olivia Noah Emma Ava Sophia Lucas Mia Ethan Zoe Leo Nora Omar Priya Wei
Carlos Fatima Jack Ella Henry Grace Ben Chloe Sam Lily Oscar Ruby Adam Clara Hugo Iris Paul
Rosa Victor Nina George Tara Peter Julia Mark Laura Kevin Rachel David Sarah John Kate Mike
Emily James Lucy Robert Amy Daniel Helen Joe Susan Alex Jenny Max Diana Tim Alice Bob Carol
"""
_THINGS = """
apples oranges books pencils marbles stickers cookies candies cards coins balls flowers eggs
cupcakes bottles boxes bags toys shirts tickets pages chairs tables cars trees birds fish dogs
cats students players teams pizzas sandwiches cakes pens notebooks crayons balloons stamps
shells stones lemons bananas peaches carrots tomatoes potatoes hats shoes buttons beads roses
"""
_PLACES = """
school farm store bakery library park zoo garden factory restaurant market museum theater
hospital hotel classroom kitchen village city garage warehouse stadium playground office
"""
NAMES, THINGS, PLACES = _NAMES.split(), _THINGS.split(), _PLACES.split()
PROBLEMS = (
    "{name} has {n} {things}",
    "{name} bought {n} {things}",
    "{name} had {n} {things}. {other} gave",
    "{name} had",
    "{name} is",
    "{name} wants to",
    "{name} earns ${n}",
    "{name} and {other}",
    "{name}'s",
    "{name} went to the {place}",
    "{name} works",
    "{name} read",
    "{name} made",
    "{name} drives",
    "{name} sold {n}",
    "{name} collected",
    "{name} has {n} more {things} than {other}",
    "There are {n} {things} in",
    "There were {n} {things}",
    "A {place} has {n}",
    "A {place} sells",
    "The {place} had",
    "In a {place}",
    "At the {place},",
    "If {name}",
    "If there are {n}",
    "If each",
    "Each",
    "Every day, {name}",
    "How many {things}",
    "How many",
    "How much",
    "A box of",
    "A train",
    "A car travels",
    "A farmer has",
    "A teacher",
    "The price of",
    "The cost of",
    "It takes {n}",
    "Last week, {name}",
    "On Monday, {name}",
    "During the weekend, {name}",
    "After selling {n} {things},",
    "You have {n} {things}",
    "{n} {things}",
    "The total number of",
    "What is {n}",
    "Solve this math word problem:",
)
QUESTIONS = (
    "What is",
    "What are",
    "What",
    "Why",
    "How do I",
    "How does",
    "How can I",
    "Can you explain",
    "Can you",
    "Explain",
    "Write a short",
    "Write a",
    "Give me",
    "Tell me",
    "I want to",
    "I'm",
    "Who",
    "When",
    "Describe",
    "List",
    "Summarize",
    "Please",
    "Is it",
    "Create",
    "",
)


def opener(rng: random.Random, problem_share: float) -> str:
    """Return the first words of a user turn; word problems with probability `problem_share`."""
    if rng.random() >= problem_share:
        return rng.choice(QUESTIONS)
    limit = rng.choice((10, 50, 100, 500))
    return rng.choice(PROBLEMS).format(
        name=rng.choice(NAMES),
        other=rng.choice(NAMES),
        n=rng.randint(2, limit),
        things=rng.choice(THINGS),
        place=rng.choice(PLACES),
    )
