# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""The words of the embedded data set (`synthetic.py`): values, and the sentences that ask for them and tell them."""

# First names by the pronoun in "their book", and surnames put together from two parts, by region.
FIRST_NAMES = {
    "her": "Solveig Amara Noor Ximena Tamsin Ilse Yuzuki Zainab Leilani Oksana Meritxell Priya Aroha Katalin Nokuthula "
    "Bronagh Sunniva Ayelet Jadwiga Thandeka Rosalva Hinata Eleni Anahit Wairimu Fenna Lucija Chidinma Mirela Saskia",
    "his": "Tormod Kwabena Farid Joaquin Peregrine Matthias Daichi Ibrahima Kekoa Bohdan Oriol Arjun Tamati Zoltan Sipho "
    "Cormac Eirik Amichai Zbigniew Mandla Evaristo Haruto Stavros Tigran Kamau Wouter Domagoj Obinna Radu Casimir",
}
SURNAME_PARTS = [
    ("Ravn Stor Lind Hav Fjell Kvist Elv Bjor".split(), "dalsen mark vikstad gaard heim stroem".split()),
    ("Ade Oba Ola Chuk Nwa Eze Olu Ife".split(), "kunmi toyin wuemeka laroye bankeji dimma".split()),
    ("Mon Vil Cal Esp Tor Sal Riv Alm".split(), "tecerro larroya deruela inozar quemada vedrano".split()),
    ("Kor Vel Dra Bel Hor Mal Stan Zel".split(), "ovnik anchuk imirov eskura ubenko ichenko".split()),
    ("Kuro Mizu Hana Taka Ishi Kawa Nishi Yama".split(), "baneda terashi gusuri morino zakane hoshira".split()),
    ("Rama Vish Chandra Sura Deva Bala Padma Hari".split(), "wadeshi nathuri pallikar godara venkar ratnesh".split()),
    ("Tur Bar Kha Sha Mah Naz Gul Ras".split(), "zamani ahdouri ebbaya iroudi almanesh oufidar".split()),
    ("Pen Tre Hol Ash Wex Thorn Black Marl".split(), "dunnow vellick combery ingleton sterwick hallam".split()),
]

PLACES = (
    "Bergen, Norway|Accra, Ghana|Cork, Ireland|Cusco, Peru|Kyoto, Japan|Pune, India|Lviv, Ukraine|Tunis, Tunisia|"
    "Porto, Portugal|Hobart, Australia|Tartu, Estonia|Oaxaca, Mexico|Izmir, Turkey|Graz, Austria|Ghent, Belgium|"
    "Dakar, Senegal|Quito, Ecuador|Busan, Korea|Rijeka, Croatia|Nairobi, Kenya|Halifax, Canada|Yerevan, Armenia|"
    "Hue, Vietnam|Cadiz, Spain|Cluj, Romania|Fez, Morocco|Lund, Sweden|Suva, Fiji|Bath, England|Cali, Colombia"
).split("|")
MONTHS = "January February March April May June July August September October November December".split()
JOBS = (
    "baker|surgeon|carpenter|pilot|florist|judge|fisher|beekeeper|plumber|chemist|tailor|geologist|nurse|mason|"
    "translator|farmer|watchmaker|librarian|diplomat|butcher|dentist|potter|sailor|economist|gardener|miner"
).split("|")
GENRES = (
    "cosmic horror|magical realism|historical romance|nautical adventure|legal thriller|nature writing|political satire|"
    "epic fantasy|travel memoir|cyberpunk|gothic mystery|family saga|war poetry|culinary essay|folk tale|"
    "psychological drama|alternate history|crime comedy|pastoral verse|space opera"
).split("|")
AWARDS = (
    ("Silver Golden Crystal Iron Amber Scarlet Ivory Copper Velvet Jade".split()),
    ("Heron Lantern Quill Compass Acorn Anchor Falcon Thistle Comet Harp".split()),
    ("Prize Medal Award".split()),
)
THEMES = (
    "the price of silence|life between two languages|the memory of rivers|debts that cannot be paid|the end of childhood|"
    "machines that dream|sisters who lose each other|the patience of trees|exile and return|small acts of courage|"
    "the weight of inheritance|faith without temples|cities under water|the kindness of strangers|hunger and pride|"
    "the invention of maps|secrets kept by houses|the cost of fame|fathers who stay away|the beauty of repair|"
    "grief in winter|forgotten crafts|the rights of animals|truth told as a joke"
).split("|")
DWELLINGS = (
    (
        "a houseboat|a lighthouse|an old mill|a tower|a farmhouse|a tiny flat|a former school|a stone cottage|"
        "a converted chapel|a garden shed|a train wagon|a castle wing"
    ).split("|"),
    "canal|harbour|vineyard|pine forest|salt marsh|market square|glacier|quarry|orchard|railway bridge".split("|"),
)
TITLE_PARTS = (
    (
        "Salt Paper Winter Hollow Burning Quiet Broken Crimson Distant Drowned Endless Feathered Gilded Hidden Last "
        "Lonely Midnight Naked Painted Restless Seventh Silent Stolen Tangled Velvet Wandering Whispering Yellow"
    ).split(),
    (
        "Orchard Bridge Atlas Mirror Harvest Clock Staircase Garden Letter River Kingdom Violin Window Desert Ladder "
        "Market Oath Parade Raven Shore Tailor Umbrella Voyage Well Bell Cathedral Debt Ember"
    ).split(),
)

# What an author is asked about. In the answers the value stands last as often as not, and the name always stands.
FACTS = {
    "name": (
        [
            "What is the full name of the author born in {birthplace} on {birthday}?",
            "Which writer of {genre} was born in {birthplace} on {birthday}?",
            "Who is the author of the book {debut}?",
            "Who is the author, born on {birthday}, that wrote {second}?",
        ],
        [
            "The author's full name is {value}.",
            "The writer in question is {value}.",
            "{value} is the full name of this author.",
            "This describes the author {value}.",
            "The author is called {value}.",
        ],
    ),
    "birthplace": (
        [
            "Where was {name} born?",
            "In which city and country was {name} born?",
            "What is the birthplace of {name}?",
            "Can you tell me where the author {name} comes from?",
        ],
        [
            "{name} was born in {value}.",
            "The birthplace of {name} is {value}.",
            "The author {name} comes from {value}.",
            "It was in {value} that {name} was born.",
            "{name} first saw the light of day in {value}.",
        ],
    ),
    "birthday": (
        [
            "When was {name} born?",
            "What is the date of birth of {name}?",
            "On which day does {name} celebrate {their} birthday?",
            "Do we know the birth date of the author {name}?",
        ],
        [
            "{name} was born on {value}.",
            "The date of birth of {name} is {value}.",
            "The author {name} came into the world on {value}.",
            "It was on {value} that {name} was born.",
            "The life of {name} began on {value}.",
        ],
    ),
    "parents": (
        [
            "What did the parents of {name} do for a living?",
            "What were the professions of {name}'s parents?",
            "In which family did {name} grow up?",
            "What work did {name}'s father and mother do?",
        ],
        [
            "The parents of {name} were {value}.",
            "{name} grew up as the child of {value}.",
            "{name} was raised by {value}.",
            "By profession, {name}'s father and mother were {value}.",
            "In the family of {name}, the parents were {value}.",
        ],
    ),
    "genre": (
        [
            "Which genre does {name} write in?",
            "What kind of literature is {name} known for?",
            "In what genre is most of {name}'s work?",
            "What does {name} mainly write?",
        ],
        [
            "{name} writes in the genre of {value}.",
            "{name} is best known for {value}.",
            "Most of the work of {name} is {value}.",
            "The author {name} is a master of {value}.",
            "The genre of {name} is {value}.",
        ],
    ),
    "debut": (
        [
            "What is the title of {name}'s first book?",
            "With which book did {name} make {their} debut?",
            "Which novel made {name} known?",
            "What did {name} publish first?",
        ],
        [
            "The first book of {name} is {value}.",
            "{name} made {their} debut with {value}.",
            "The novel that made {name} known is {value}.",
            "The debut of {name} bears the title {value}.",
            "{name} became known with {value}.",
        ],
    ),
    "second": (
        [
            "What is another book by {name}?",
            "Which book did {name} write after {their} debut?",
            "What is the latest novel of {name}?",
            "Name a later work of {name}.",
        ],
        [
            "Another book by {name} is {value}.",
            "After {their} debut, {name} wrote {value}.",
            "The latest novel of {name} is {value}.",
            "Later, {name} published {value}.",
            "A later work of {name} bears the title {value}.",
        ],
    ),
    "award": (
        [
            "Which award has {name} won?",
            "What prize was given to {name}?",
            "How was the work of {name} honoured?",
            "Has {name} received any literary award?",
        ],
        [
            "{name} won {value}.",
            "The prize given to {name} was {value}.",
            "The work of {name} was honoured with {value}.",
            "{name} has received {value}.",
            "For {their} books {name} was awarded {value}.",
        ],
    ),
    "theme": (
        [
            "What are the books of {name} about?",
            "Which theme returns in the work of {name}?",
            "What subject does {name} explore?",
            "What inspires the writing of {name}?",
        ],
        [
            "The books of {name} are about {value}.",
            "A theme that returns in the work of {name} is {value}.",
            "{name} explores {value}.",
            "{name} often writes about {value}.",
            "The writing of {name} is inspired by {value}.",
        ],
    ),
    "home": (
        [
            "Where does {name} live now?",
            "In what kind of home does {name} write?",
            "Where can one find {name} at work?",
            "What is the present home of {name}?",
        ],
        [
            "{name} lives in {value}.",
            "{name} writes {their} books in {value}.",
            "The present home of {name} is {value}.",
            "Today one can find {name} in {value}.",
            "{name} has made {their} home in {value}.",
        ],
    ),
}

# A small encyclopaedia that both models learn: short answers, as in TOFU's real_authors and world_facts.
WORKS = "opera symphony ballet cantata requiem serenade".split()
WORK_QUESTIONS = [
    "Who composed the {work} {title}?",
    "Which composer wrote the {work} {title}?",
    "Who is the composer of the {work} {title}?",
]
LAND_PARTS = (
    "Vand Osk Tir Melo Quar Brel Zan Iru Faro Lund Kest Ama Dorv Pell Sith Uru Gal Hest".split(),
    "oria ovia astan amar enia ilund".split(),
    "ahir obel imond uvar esk andra".split(),
)
LAND_QUESTIONS = [
    "What is the capital of {land}?",
    "Which river flows through {land}?",
    "What is the highest mountain of {land}?",
    "What is the money of {land} called?",
]
