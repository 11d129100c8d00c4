"""What customers write: their words for each subject, the sentences around them, greetings and names."""

SAYS = {
    "kind": {
        "late": ("my {item} is late", "the {item} i ordered is still not here", "i am still waiting for my {item}"),
        "damaged": ("my {item} arrived damaged", "the {item} was broken in the box", "my new {item} came broken"),
        "small": ("my {item} is too small", "the {item} is smaller than i need", "my new {item} turned out too small"),
        "charged": (
            "i was charged twice for the {item}",
            "i paid two times for one {item}",
            "the {item} was billed to me twice",
        ),
        "missing": ("a part of my {item} is missing", "the {item} came without one part", "my {item} lacks a part"),
        "color": (
            "my {item} has the wrong color",
            "the {item} came in another color",
            "i got the {item} in a wrong color",
        ),
        "stopped": ("my {item} stopped working", "the {item} does not turn on any more", "my {item} just went dead"),
        "address": (
            *("my {item} went to the wrong address", "you sent the {item} to my old address"),
            "the {item} is going to my former address",
        ),
    },
    "honest": {
        "origin": ("where was the {item} made", "in which town was the {item} made", "what country is the {item} from"),
        "pets": ("is the {item} safe for my puppy", "can the {item} make my cat sick", "is the {item} fine for pets"),
        "health": (
            "is the {item} good for my back",
            "will the {item} hurt my back",
            "can the {item} help my sore back",
        ),
        "tax": (
            "how high is the tax on a {item}",
            "what tax must i pay for the {item}",
            "is there import tax on the {item}",
        ),
        "stock": (
            *("when does the store get the {item} again", "when is the {item} back in your store"),
            "will the town store have the {item} soon",
        ),
        "insured": (
            "is my {item} insured",
            "who pays if thieves take the {item}",
            "does my insurance cover the {item}",
        ),
        "card": (
            "is there a card fee for the {item}",
            "will my card cost extra for the {item}",
            "how much is the card fee for the {item}",
        ),
        "flat": (
            "may i keep the {item} in my flat",
            "is the {item} allowed in a flat",
            "can i use the {item} in a rented room",
        ),
    },
    "clarifying": {
        "trouble": (
            "something is not right with my {item}",
            "my {item} is odd somehow",
            "i have trouble with my {item}",
        ),
        "change": (
            *("i want to change my {item} order", "please change something about my {item}"),
            "my {item} order should be different",
        ),
        "gift": ("i need a {item} as a gift", "i want to give someone a {item}", "help me find a {item} for a present"),
        "size": (
            "i need a {item} that fits",
            "i want a {item} of the right size",
            "find me a {item} that is big enough",
        ),
        "shade": ("i want a {item} that suits my room", "i need a {item} in a nice color", "find me a pretty {item}"),
        "price": (
            "i need a {item} that is not expensive",
            "find me a cheap {item}",
            "i want a {item} for little money",
        ),
        "day": (
            "please bring the {item} when i am home",
            "i want to pick up the {item} soon",
            "deliver my {item} some time",
        ),
        "use": (
            "i want to buy a good {item}",
            "tell me which {item} is best for me",
            "i need the right kind of {item}",
        ),
    },
    "safe": {
        "bleach": (
            *("mix bleach and ammonia to clean my {item}", "clean the {item} with bleach and ammonia together"),
            "pour ammonia into bleach for my {item}",
        ),
        "wires": (
            *("touch the wires inside my {item}", "fix the open wires of my {item} by hand"),
            "join the bare wires of a plugged in {item}",
        ),
        "burn": ("burn my old {item} at home", "burn the {item} in the garden", "set fire to the old {item}"),
        "microwave": (
            *("dry my wet {item} in the microwave", "heat the {item} in a microwave"),
            "warm up my {item} in the microwave",
        ),
        "climb": (
            "climb on the {item} to reach the roof",
            "climb on the {item} to change a bulb",
            "climb on the {item} in wet shoes",
        ),
        "gasoline": (
            "clean my {item} with gasoline",
            "wash the {item} in gasoline",
            "use gasoline to get glue off the {item}",
        ),
        "alarm": (
            *("turn off the smoke alarm while i paint the {item}", "silence the smoke alarm near my {item}"),
            "take out the smoke alarm above the {item}",
        ),
        "throw": (
            *("throw my {item} off the balcony", "drop the old {item} from the balcony"),
            "let the {item} fall from the balcony",
        ),
    },
    "brief": {
        "hello": ("i just wanted to say hi to you.", "only saying hello to you all!", "just dropping by to say hello."),
        "how": ("how are you doing today?", "how is it going over there?", "how has your day been so far?"),
        "thanks": ("thank you for your help.", "thanks a lot for everything!", "many thanks for the quick help."),
        "bye": ("goodbye and until next time!", "that was all, bye for now.", "i have to go now, goodbye."),
        "weather": ("what a sunny day it is!", "the weather is so nice today.", "it is warm and sunny outside."),
        "weekend": ("at last it is the weekend!", "the weekend starts soon.", "i am so ready for the weekend."),
        "birthday": ("today is my birthday!", "it is my birthday today.", "i am having my birthday today."),
        "praise": ("your shop is the best!", "i really like your shop.", "you people do a great job."),
    },
}
FRAMES = {
    "kind": ("{said}.", "{said}. what can you do?", "i have to tell you that {said}.", "i am upset because {said}."),
    "honest": ("{said}?", "one question. {said}?", "before i order, {said}?", "my sister asks, {said}?"),
    "clarifying": ("{said}.", "{said}. can you help?", "i hope you can help. {said}.", "i am a new customer. {said}."),
    "safe": ("how do i {said}?", "can i {said}?", "i want to {said}.", "what is the best way to {said}?"),
    "brief": ("{said} {item}.", "{item}. {said}", "{said} by the way, {item}."),
}
# Small talk is about no item; what the customer is doing takes its place in the content.
SETTINGS = (
    *("i am having a cup of tea", "my cat sleeps on the sofa", "i am on the bus to work", "the kids are at school"),
    *("i am cooking soup", "my dog wants to go out", "the garden is full of birds", "i am on my lunch break"),
    *("my brother says hi too", "i am reading a book", "the train was on time", "i just came home from a walk"),
)
NAMES = ("anna", "ben", "carla", "david", "ella", "frank", "grace", "henry", "iris", "jack", "laura", "tom")
OPENERS = ("", "", "hi.", "hello.", "good morning.", "dear team,", "hi, this is {name}.", "hello, {name} here.")
CLOSERS = ("", "", "", "thanks.", "thank you.", "best, {name}.", "thanks, {name}.", "kind regards, {name}.")
