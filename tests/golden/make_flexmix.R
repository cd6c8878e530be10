# Mixtures of regressions by flexmix: Rscript tests/golden/make_flexmix.R, from the root of a clone (a minute).
suppressPackageStartupMessages({library(flexmix); library(jsonlite)})

# flexmix divides the residual sum of squares by n - p; this driver divides by n, which is maximum likelihood.
FLXMRml <- function() {
  driver <- FLXMRglm()
  component_of <- driver@defineComponent
  driver@fit <- function(x, y, w, component) {
    fit <- lm.wfit(x, y, w = w)
    component_of(list(coef = coef(fit), df = ncol(x) + 1, sigma = sqrt(sum(w * fit$residuals^2) / sum(w))))
  }
  driver
}

classes <- read.csv("tests/golden/sim_classes.csv")
rows <- read.csv("tests/golden/sim_rows.csv")
pbc <- read.csv("mixmoe/data/pbcseq.csv")
pbc$year <- pbc$day / 365.25

# name, data, experts, formula of mixmoe, regression of flexmix, its gate
cases <- list(
  list("classes_gate", "sim_classes", classes, 2, "y ~ time + x1 | gate: z1 + z2 | re: (0 | id)", y ~ time + x1 | id, ~ z1 + z2),
  list("classes_no_gate", "sim_classes", classes, 2, "y ~ time + x1 | re: (0 | id)", y ~ time + x1 | id, ~ 1),
  list("pbc_three", "pbcseq", pbc, 3, "log(bili) ~ year | gate: age | re: (0 | id)", log(bili) ~ year | id, ~ age),
  list("rows_gate", "sim_rows", rows, 2, "y ~ x1 | gate: z1 + z2", y ~ x1, ~ z1 + z2),
  list("rows_no_gate", "sim_rows", rows, 2, "y ~ x1", y ~ x1, ~ 1)
)

# Labelled as mixmoe does: experts by their average probability, largest first; gate against the first.
run <- function(case) {
  set.seed(1)
  control <- list(tolerance = 1e-13, iter.max = 20000, minprior = 0)
  concomitant <- FLXPmultinom(case[[7]])
  fits <- lapply(1:8, function(i) flexmix(case[[6]], data = case[[3]], k = case[[4]], model = FLXMRml(),
                                          concomitant = concomitant, control = control))
  best <- fits[[which.max(sapply(fits, function(f) as.numeric(logLik(f))))]]
  mine <- case[[3]]
  gate <- if (length(all.vars(case[[7]]))) parameters(best, which = "concomitant") else t(log(prior(best) / prior(best)[1]))
  gate <- matrix(gate, ncol = case[[4]])
  units <- if ("id" %in% names(mine) && grepl("id", case[[5]])) mine[!duplicated(mine$id), ] else mine
  W <- model.matrix(case[[7]], units)
  p <- exp(W %*% gate); p <- p / rowSums(p)
  order <- order(-colMeans(p))
  est <- parameters(best)[, order]
  k <- nrow(est)
  gamma <- t(gate[, order, drop = FALSE] - gate[, order[1]])[-1, , drop = FALSE]
  list(name = case[[1]], data = case[[2]], experts = case[[4]], formula = case[[5]],
       peer_formula = paste(deparse(case[[6]]), "with", paste(deparse(case[[7]]), collapse = "")), loglik = as.numeric(logLik(best)),
       runs_at_best = sum(sapply(fits, function(f) as.numeric(logLik(f))) > as.numeric(logLik(best)) - 1e-4),
       beta = t(unname(est[-k, ])), sigma = unname(est[k, ]), gamma = unname(gamma), probabilities = unname(colMeans(p)[order]))
}

versions <- list(R = R.version.string, flexmix = as.character(packageVersion("flexmix")), nnet = as.character(packageVersion("nnet")))
write_json(list(versions = versions, cases = lapply(cases, run)), "tests/golden/flexmix.json",
           digits = NA, auto_unbox = TRUE, pretty = TRUE)
