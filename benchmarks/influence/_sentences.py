"""Everyday facts, each said in three languages in words that share little: what the study of languages reads.

Of each fact and language two statements, which are rows, and a prompt with its completion, which is the query.
"""

FACTS: dict[str, dict[str, tuple[str, str, str, str]]] = {
    "sky": {
        "English": (
            "On a clear day the sky above us is blue.",
            "Look up at noon: the sky has a blue colour.",
            "When there are no clouds, the sky is",
            " blue.",
        ),
        "French": (
            "Par beau temps, le ciel est bleu.",
            "Levez les yeux à midi : le ciel a une couleur bleue.",
            "Quand il n'y a pas de nuages, le ciel est",
            " bleu.",
        ),
        "German": (
            "Bei schönem Wetter ist der Himmel blau.",
            "Schau mittags nach oben: der Himmel hat eine blaue Farbe.",
            "Wenn keine Wolken da sind, ist der Himmel",
            " blau.",
        ),
    },
    "snow": {
        "English": (
            "Fresh snow is white and cold.",
            "The fields turned white because snow had fallen.",
            "The colour of snow is",
            " white.",
        ),
        "French": (
            "La neige fraîche est blanche et froide.",
            "Les champs sont devenus blancs parce que la neige est tombée.",
            "La couleur de la neige est le",
            " blanc.",
        ),
        "German": (
            "Frischer Schnee ist weiß und kalt.",
            "Die Felder wurden weiß, weil Schnee gefallen war.",
            "Die Farbe von Schnee ist",
            " weiß.",
        ),
    },
    "bees": {
        "English": (
            "Bees make honey from flowers.",
            "The honey in this jar was gathered by bees.",
            "The insects that make honey are called",
            " bees.",
        ),
        "French": (
            "Les abeilles font du miel avec les fleurs.",
            "Le miel de ce pot a été récolté par des abeilles.",
            "Les insectes qui font le miel s'appellent les",
            " abeilles.",
        ),
        "German": (
            "Bienen machen Honig aus Blüten.",
            "Der Honig in diesem Glas wurde von Bienen gesammelt.",
            "Die Insekten, die Honig machen, heißen",
            " Bienen.",
        ),
    },
    "week": {
        "English": (
            "A week has seven days.",
            "After seven days the week begins again.",
            "The number of days in a week is",
            " seven.",
        ),
        "French": (
            "Une semaine compte sept jours.",
            "Après sept jours, la semaine recommence.",
            "Le nombre de jours dans une semaine est",
            " sept.",
        ),
        "German": (
            "Eine Woche hat sieben Tage.",
            "Nach sieben Tagen fängt die Woche wieder an.",
            "Die Zahl der Tage in einer Woche ist",
            " sieben.",
        ),
    },
    "fish": {
        "English": (
            "Fish live in water and breathe through gills.",
            "Without water, a fish cannot live.",
            "Fish live in the",
            " water.",
        ),
        "French": (
            "Les poissons vivent dans l'eau et respirent par des branchies.",
            "Sans eau, un poisson ne peut pas vivre.",
            "Les poissons vivent dans l'",
            "eau.",
        ),
        "German": (
            "Fische leben im Wasser und atmen durch Kiemen.",
            "Ohne Wasser kann ein Fisch nicht leben.",
            "Fische leben im",
            " Wasser.",
        ),
    },
    "cow": {
        "English": (
            "Cows eat grass and give milk.",
            "The milk we drink comes from cows.",
            "The farmer milks the",
            " cow.",
        ),
        "French": (
            "Les vaches mangent de l'herbe et donnent du lait.",
            "Le lait que nous buvons vient des vaches.",
            "Le fermier trait la",
            " vache.",
        ),
        "German": (
            "Kühe fressen Gras und geben Milch.",
            "Die Milch, die wir trinken, kommt von Kühen.",
            "Der Bauer melkt die",
            " Kuh.",
        ),
    },
    "bread": {
        "English": (
            "The baker makes bread from flour.",
            "Bread is made of flour, water and salt.",
            "At the bakery we buy",
            " bread.",
        ),
        "French": (
            "Le boulanger fait le pain avec de la farine.",
            "Le pain se fait avec de la farine, de l'eau et du sel.",
            "À la boulangerie, on achète du",
            " pain.",
        ),
        "German": (
            "Der Bäcker macht Brot aus Mehl.",
            "Brot besteht aus Mehl, Wasser und Salz.",
            "In der Bäckerei kaufen wir",
            " Brot.",
        ),
    },
    "night": {
        "English": (
            "At night the moon and the stars shine.",
            "The moon can be seen when it is dark.",
            "At night, what shines in the dark is the",
            " moon.",
        ),
        "French": (
            "La nuit, la lune et les étoiles brillent.",
            "On voit la lune quand il fait noir.",
            "La nuit, ce qui brille dans le noir, c'est la",
            " lune.",
        ),
        "German": (
            "In der Nacht leuchten der Mond und die Sterne.",
            "Man sieht den Mond, wenn es dunkel ist.",
            "Was nachts im Dunkeln leuchtet, ist der",
            " Mond.",
        ),
    },
    "cheese": {
        "English": (
            "Mice are said to love cheese.",
            "The trap for the mouse holds a piece of cheese.",
            "The mouse is eating the",
            " cheese.",
        ),
        "French": (
            "On dit que les souris adorent le fromage.",
            "Le piège à souris contient un morceau de fromage.",
            "La souris mange le",
            " fromage.",
        ),
        "German": (
            "Man sagt, dass Mäuse Käse lieben.",
            "In der Falle für die Maus liegt ein Stück Käse.",
            "Die Maus frisst den",
            " Käse.",
        ),
    },
    "doctor": {
        "English": (
            "A doctor treats people who are ill.",
            "When you are ill, you go to see a doctor.",
            "Ill people are treated by a",
            " doctor.",
        ),
        "French": (
            "Un médecin soigne les gens malades.",
            "Quand on est malade, on va voir un médecin.",
            "Les malades sont soignés par un",
            " médecin.",
        ),
        "German": (
            "Ein Arzt behandelt kranke Menschen.",
            "Wenn man krank ist, geht man zum Arzt.",
            "Kranke werden behandelt von einem",
            " Arzt.",
        ),
    },
    "key": {
        "English": (
            "A key opens the lock of a door.",
            "He could not open the door, for he had lost his key.",
            "She opened the lock with her",
            " key.",
        ),
        "French": (
            "Une clé ouvre la serrure d'une porte.",
            "Il ne pouvait pas ouvrir la porte, car il avait perdu sa clé.",
            "Elle a ouvert la serrure avec sa",
            " clé.",
        ),
        "German": (
            "Ein Schlüssel öffnet das Schloss einer Tür.",
            "Er konnte die Tür nicht öffnen, denn er hatte seinen Schlüssel verloren.",
            "Sie öffnete das Schloss mit ihrem",
            " Schlüssel.",
        ),
    },
    "winter": {
        "English": (
            "Winter is the coldest season of the year.",
            "It is cold outside, for it is winter.",
            "The coldest season of the year is",
            " winter.",
        ),
        "French": (
            "L'hiver est la saison la plus froide de l'année.",
            "Il fait froid dehors, car c'est l'hiver.",
            "La saison la plus froide de l'année est l'",
            "hiver.",
        ),
        "German": (
            "Der Winter ist die kälteste Jahreszeit.",
            "Draußen ist es kalt, denn es ist Winter.",
            "Die kälteste Jahreszeit ist der",
            " Winter.",
        ),
    },
}
