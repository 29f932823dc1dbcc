"""The zoo: faulty and healthy training set-ups, an exam for the diagnosis that its rules never see while they are written."""
