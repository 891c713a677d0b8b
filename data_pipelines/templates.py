"""How questions are put and answered: the project's own words.

"{}" stands for a structure ("the liver"), "{box}" for a box as text. None of them names a side, an
end or a plane, so that they forbid no flip, and none needs to know whether a name is plural.
"""

from __future__ import annotations

REPORT = (
    "Write the findings of this scan.",
    "Describe what this volume shows.",
    "What would a radiologist report here?",
    "Please draft a report of this examination.",
    "Give the findings in full sentences.",
    "Report on this CT.",
    "What is there to see in these slices?",
    "Summarise the images as in a radiology report.",
    "Dictate the findings.",
    "Read this scan and tell me what you see.",
    "Which findings does this examination have?",
    "Put the content of this volume into words.",
    "I need the report of this scan. Can you write it?",
    "Tell the referring doctor what this scan shows.",
    "Go through the volume and note everything of interest.",
    "Could you describe the findings in this CT?",
    "Provide a description of the images.",
    "What does a careful reader find here?",
    "Explain what can be seen in this 3D image.",
    "Interpret this scan.",
    "List the findings, normal and abnormal.",
    "Compose the findings section for this study.",
    "How would you caption this volume?",
    "Please look at the scan and report.",
)
YES_NO = (
    "Does this volume show {}?",
    "Can {} be seen here?",
    "Do you see any of {} in this scan?",
    "Does any part of {} lie within this field of view?",
    "Look at the volume: does it contain {}?",
    "Yes or no: does the image include {}?",
    "Would a reader find {} in these slices?",
    "Did this scan capture {}, in part or as a whole?",
)
CHOICE = (
    "Which of these structures does this volume show?",
    "Only one of these can be seen here. Which one?",
    "Which structure lies within this field of view?",
    "Choose the structure that the scan contains.",
    "Which one of the following would a reader find in these slices?",
    "One of these is in the image, the others are not. Name it.",
)
REC = (
    "Where do you see {}?",
    "Where can {} be found in this volume? Answer with a box.",
    "Give the bounding box of {}.",
    "Locate {} in this scan.",
    "Mark {} by a box.",
    "I am looking for {}. Which box holds it all?",
    "Which region of the image is taken up by {}?",
    "Find {} and report the coordinates.",
    "Please outline {} by the smallest box.",
    "How far does {} reach in this volume? Give its box.",
    "Tell me the position of {} as a box.",
    "What are the box coordinates of {} here?",
)
REC_ANSWERS = (
    "{box}.",
    "The box is {box}.",
    "It reaches over {box}.",
    "I find it at {box}.",
    "Everything of it lies within {box}.",
    "Look at {box}.",
)
REC_ABSENT = (
    "This volume does not show it.",
    "It is not in the field of view.",
    "There is none of it here.",
    "I cannot find it in this scan, so there is no box to give.",
    "No part of it can be seen.",
)
REG = (
    "What fills {box}?",
    "Which structure has the bounding box {box}?",
    "Name what is enclosed by {box}.",
    "The box {box} was drawn around one structure. Which one?",
    "What do you see within {box}?",
    "Which part of the body reaches just over {box}?",
    "Somebody marked {box}. What is it?",
    "Say what lies in the region {box}.",
    "Please name the structure that fits into {box}.",
    "What did the reader mean to mark by {box}?",
)
REG_ANSWERS = (
    "{}.",
    "One sees {} there.",
    "The box holds {}.",
    "That region is taken up by {}.",
    "It was drawn around {}.",
    "There you find {}.",
)
