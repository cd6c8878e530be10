# Linear mixed models with correlated or unequal errors, maximum likelihood by nlme and glmmTMB:
# Rscript tests/golden/make_nlme.R, from the root of a clone.
suppressPackageStartupMessages({library(nlme); library(glmmTMB); library(jsonlite)})

read <- function(path) read.csv(path, stringsAsFactors = FALSE)
pbc <- read("mixmoe/data/pbcseq.csv")
pbc$year <- pbc$day / 365.25
pbc$logbili <- log(pbc$bili)
pbc$visit <- ave(pbc$year, pbc$id, FUN = rank)
orthodont <- read("mixmoe/data/orthodont.csv")
orthodont$visit <- (orthodont$age - 6) / 2
sim <- read("tests/golden/sim_unbalanced.csv")
sim$visit <- ave(sim$time, sim$id, FUN = rank)
data <- list(pbcseq = pbc, orthodont = orthodont, sleepstudy = read("mixmoe/data/sleepstudy.csv"), sim_unbalanced = sim)

control <- lmeControl(maxIter = 500, msMaxIter = 500, niterEM = 50, msTol = 1e-12, tolerance = 1e-10, returnObject = TRUE)

# name, data, formula and options of mixmoe, fixed and random part, correlation structures to start from, variances
ar1 <- function(form) lapply(c(0.1, 0.4, 0.8), function(v) corAR1(v, form))
car1 <- function(form) lapply(c(0.02, 0.2, 0.8), function(v) corCAR1(v, form))
cases <- list(
  list("ortho_ar1", "orthodont", "distance ~ age * sex | re: (1 | subject)", list(errors = "ar1", time = "visit"),
       distance ~ age * factor(sex), ~ 1 | subject, ar1(~ visit | subject), NULL),
  list("ortho_sex", "orthodont", "distance ~ age * sex | re: (1 | subject) | sigma: sex", list(errors = "iid"),
       distance ~ age * factor(sex), ~ 1 | subject, list(NULL), varIdent(form = ~ 1 | sex)),
  list("ortho_none_ar1", "orthodont", "distance ~ age * sex | re: (0 | subject)", list(errors = "ar1"),
       distance ~ age * factor(sex), NULL, ar1(~ 1 | subject), NULL),
  list("sleep_ar1", "sleepstudy", "reaction ~ days | re: (1 + days | subject)", list(errors = "ar1", time = "days"),
       reaction ~ days, ~ 1 + days | subject, ar1(~ days | subject), NULL),
  list("sleep_sigma", "sleepstudy", "reaction ~ days | re: (1 + days | subject) | sigma: days", list(errors = "iid"),
       reaction ~ days, ~ 1 + days | subject, list(NULL), varExp(form = ~ days)),
  list("pbc_car1", "pbcseq", "logbili ~ year + age | re: (1 + year | id)", list(errors = "car1", time = "year"),
       logbili ~ year + age, ~ 1 + year | id, car1(~ year | id), NULL),
  list("pbc_car1_sigma", "pbcseq", "logbili ~ year | re: (1 | id) | sigma: year", list(errors = "car1", time = "year"),
       logbili ~ year, ~ 1 | id, car1(~ year | id), varExp(form = ~ year)),
  list("pbc_visits", "pbcseq", "logbili ~ year | re: (1 | id)", list(errors = "ar1", time = "visit"),
       logbili ~ year, ~ 1 | id, ar1(~ visit | id), NULL),
  list("sim_car1", "sim_unbalanced", "y ~ time + x1 | re: (1 | id)", list(errors = "car1", time = "time"),
       y ~ time + x1, ~ 1 | id, car1(~ time | id), NULL),
  list("sim_none_car1", "sim_unbalanced", "y ~ time + x1 | re: (0 | id)", list(errors = "car1", time = "time"),
       y ~ time + x1, NULL, car1(~ time | id), NULL)
)

fit_once <- function(case, correlation) {
  d <- data[[case[[2]]]]
  tryCatch(
    if (is.null(case[[6]])) {
      gls(case[[5]], d, correlation, case[[8]], method = "ML",
          control = glsControl(maxIter = 500, msMaxIter = 500, msTol = 1e-12, tolerance = 1e-10))
    } else {
      lme(case[[5]], d, case[[6]], correlation, case[[8]], method = "ML", control = control)
    }, error = function(e) {message(case[[1]], ": ", conditionMessage(e)); NULL})
}

run <- function(case) {
  fits <- Filter(Negate(is.null), lapply(case[[7]], function(correlation) fit_once(case, correlation)))
  best <- fits[[which.max(sapply(fits, function(f) as.numeric(logLik(f))))]]
  mixed <- inherits(best, "lme")
  corr <- best$modelStruct$corStruct
  varf <- best$modelStruct$varStruct
  list(name = case[[1]], data = case[[2]], formula = case[[3]], options = case[[4]],
       loglik = as.numeric(logLik(best)), beta = unname(if (mixed) fixef(best) else coef(best)),
       se = unname(sqrt(diag(if (mixed) best$varFix else best$varBeta))), sigma = best$sigma,
       correlation = if (is.null(corr)) NA else unname(coef(corr, unconstrained = FALSE)),
       variance = if (is.null(varf)) NA else unname(coef(varf, unconstrained = FALSE)),
       normalized = unname(as.numeric(resid(best, type = "normalized"))[1:5]))
}

# the covariates of a dispersion by glmmTMB, for Gaussian responses on the log of the standard deviation
tmb <- glmmTMB(logbili ~ year + age + (1 + year | id), pbc, dispformula = ~ year + factor(sex), REML = FALSE)
glmm <- list(name = "pbc_sigma", data = "pbcseq", formula = "logbili ~ year + age | re: (1 + year | id) | sigma: year + sex",
             loglik = as.numeric(logLik(tmb)), beta = unname(fixef(tmb)$cond), slopes = unname(fixef(tmb)$disp))

versions <- list(R = R.version.string, nlme = as.character(packageVersion("nlme")),
                 glmmTMB = as.character(packageVersion("glmmTMB")))
write_json(list(versions = versions, cases = lapply(cases, run), glmmTMB = glmm), "tests/golden/nlme.json",
           digits = NA, auto_unbox = TRUE, pretty = TRUE)
