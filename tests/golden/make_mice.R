# Pooled estimates of mice::pool on the imputations of its own example (nhanes), with the completed data.
# Rscript make_mice.R > mice.json ; mice 3.15.0, jsonlite
suppressMessages(library(mice))
imputed <- mice(nhanes, m = 5, seed = 2026, printFlag = FALSE)
fits <- with(imputed, lm(bmi ~ hyp + chl))
pooled <- summary(pool(fits), type = "all", conf.int = TRUE)
names(pooled)[names(pooled) == "2.5 %"] <- "low"
names(pooled)[names(pooled) == "97.5 %"] <- "high"
completed <- lapply(1:5, function(i) complete(imputed, i)[, c("bmi", "hyp", "chl")])
cat(jsonlite::toJSON(list(data = completed, pooled = pooled), digits = 12, dataframe = "columns"), "\n")
