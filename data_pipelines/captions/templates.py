"""Question templates for reports, yes/no and choices, written for this project.

Templates for places are in `place_templates`. "{}" stands for a structure ("the liver"). No
template names a side, an end or a plane, so that none forbids a flip. All of them are correct for
singular and plural names. M3D has 42 templates for reports
(LaMed/src/dataset/prompt_templates.py of BAAI-DCAI/M3D); here are as many of that kind.
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
    "Write down everything that a colleague should know about this scan.",
    "Take this volume and turn it into a report.",
    "State the findings as you would in a hospital.",
    "I have not seen these images yet. What is on them?",
    "Which observations can be made in this volume?",
    "Talk me through the scan.",
    "Give an account of the anatomy and of what is unusual about it.",
    "Your report on this examination, please.",
    "Is anything remarkable here? Describe all of it.",
    "Record what these images show.",
    "Work out the findings and phrase them as a text.",
    "What should the report of this volume say?",
    "Review this study and write up the results.",
    "Sum up the examination for the patient's file.",
    "Note the findings organ by organ.",
    "Can you say in words what this scan contains?",
    "Describe this examination to somebody who cannot see it.",
    "A report is missing for this scan. Supply one.",
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
